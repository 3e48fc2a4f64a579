"""What git knows of the code that runs."""

import subprocess

from pipeline import mlflow_store


def code_commit() -> str:
    """The commit at the project's root, and how many files differ from it; the dvc.lock files,
    which DVC writes while it runs, do not count."""
    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--", ".", ":(exclude,glob)**/dvc.lock").splitlines()
    if not commit:
        return "not known: no git repository"
    return f"{commit} with {len(changed)} changed file(s)" if changed else commit


def git(*arguments: str) -> str:
    """The output of a git command where this code lies; empty where git or its data is not."""
    try:
        command = ["git", "-C", str(mlflow_store.CODE), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
