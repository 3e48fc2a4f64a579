"""What DVC holds besides the files that lie here: its cache, and results of other revisions."""

import subprocess
import sys
from functools import cache
from pathlib import Path

from pipeline.commits import git
from pipeline.errors import PipelineError


def get(path: str, revision: str, to: Path) -> None:
    """Fetch an output, or a file, as it was at a revision; PipelineError where DVC cannot."""
    inside = git("rev-parse", "--show-prefix")  # with a revision DVC counts from git's root
    arguments = ["get", ".", f"{inside}{path}", "--rev", revision, "--out", str(to)]
    got = _dvc(*arguments)
    if got.returncode:
        raise PipelineError(f"DVC cannot fetch {path} of {revision}: {got.stderr[-500:].strip()}")


def cached(md5: str) -> Path:
    """Where DVC's cache has the file with this digest, or the list of a folder's (``<md5>.dir``);
    nothing may be there."""
    return _cache() / "files" / "md5" / md5[:2] / md5[2:]


@cache
def _cache() -> Path:
    return Path(_dvc("cache", "dir").stdout.strip())


def _dvc(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)
