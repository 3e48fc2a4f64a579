"""What a layout knows. Each file beside this one holds one layout."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import ClassVar

from pipeline.protocols import Protocol
from pipeline.settings import Dataset

Key = tuple[str, str, str]
"""Subject, sequence and view: what names a sequence within a dataset."""

FRAME = r"[^/.][^/]*"
"""A frame's name before its suffix. Hidden files are none: a Mac adds ._0001.png to every picture
that it packs."""


class Layout:
    """One way in which silhouettes are handed out.

    The class recognizes frames by their paths. An object is that layout in one root: how its
    subjects are divided, and who is compared with whom.
    """

    name: ClassVar[str]

    form: ClassVar[str]
    """The path of a frame, in words."""

    dataset: ClassVar[Dataset | None] = None
    """The dataset of params.yaml that is handed out so; None for data of another name."""

    pattern: ClassVar[re.Pattern[str]]
    """Groups subject, sequence, view; any folders may come before."""

    split_words: str
    protocols: tuple[Protocol, ...]
    """At least one; the first gives the headline."""

    expected: Mapping[str, int]
    """Counts of the whole release, as far as they are known: subjects, train_subjects,
    val_subjects, test_subjects, sequences, and views as the view column tells them apart."""

    def __init__(self, root: Path, keys: Collection[Key], split: str) -> None:
        """``keys``: all sequences found below ``root``; ``split``: ``data.<dataset>.split``.

        Most layouts need none of them.
        """

    @classmethod
    def key(cls, path: str) -> Key | None:
        """Whose frame lies there, or None where the path is no frame's of this layout."""
        match = cls.pattern.search(path)
        return (match["subject"], match["sequence"], match["view"]) if match else None

    @classmethod
    def key_of_folder(cls, folder: str) -> Key | None:
        """Whose frames would lie in a folder that may hold none."""
        return cls.key(f"{folder}/1.png") or cls.key(f"{folder}/1.jpg")

    def split(self, subject: str, sequence: str) -> str:
        """``train``, ``val`` or ``test``."""
        raise NotImplementedError
