"""DVC's commands, and what it holds besides the files that lie here."""

import subprocess
import sys
from functools import cache
from pathlib import Path

from pipeline.commits import git
from pipeline.errors import PipelineError


def get(path: str, revision: str, to: Path) -> None:
    """Fetch an output, or a file, as it was at a revision; PipelineError where DVC cannot."""
    inside = git("rev-parse", "--show-prefix")  # with a revision DVC counts from git's root
    got = dvc("get", ".", f"{inside}{path}", "--rev", revision, "--out", str(to))
    if got.returncode:
        raise PipelineError(f"DVC cannot fetch {path} of {revision}: {got.stderr[-500:].strip()}")


def cached(md5: str) -> Path:
    """Where DVC's cache has the file with this digest, or the list of a folder's (``<md5>.dir``);
    nothing may be there."""
    return _cache() / "files" / "md5" / md5[:2] / md5[2:]


@cache
def _cache() -> Path:
    return Path(dvc("cache", "dir").stdout.strip())


def dvc(
    *arguments: str, output: int | None = subprocess.PIPE
) -> "subprocess.CompletedProcess[str]":
    """A command of DVC's, whatever its end; ``output`` is where both its streams go."""
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, stdout=output, stderr=output, encoding="utf-8", check=False)
