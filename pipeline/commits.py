"""What git knows of the code that runs."""

import subprocess

from pipeline import mlflow_store


def code_commit() -> str:
    """The commit at the project's root, and how many files differ from it."""
    commit, changed = git("rev-parse", "HEAD"), changed_files()
    if not commit:
        code = mlflow_store.CODE
        if any((folder / ".git").exists() for folder in (code, *code.parents)):
            return "not known: git does not read its repository here, `git status` says why"
        return "not known: no git repository"
    return f"{commit} with {changed} changed file(s)" if changed else commit


def changed_files() -> int:
    """How many files differ from the commit; the dvc.lock files, which DVC writes while it runs, do
    not count."""
    return len(git("status", "--porcelain", "--", ".", ":(exclude,glob)**/dvc.lock").splitlines())


def git(*arguments: str) -> str:
    """The output of a git command where this code lies; empty where git or its data is not."""
    try:
        command = ["git", "-C", str(mlflow_store.CODE), *arguments]
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
