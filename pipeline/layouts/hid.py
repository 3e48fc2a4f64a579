"""CASIA-E as the HID competitions hand it out: probes are videos of nobody knows whom."""

import re
from collections.abc import Mapping

from pipeline.layouts.layout import FRAME, Key, Layout
from pipeline.protocols import Protocol

VIEW = "any"
"""The cameras are not told."""


class Hid(Layout):
    name = "HID competition"
    form = "train|test_gallery/<subject>/<hash>/<frame>.(jpg|png), test_probe/<video>/<frame>"
    dataset = "casia_e"
    pattern = re.compile(
        r"(?:^|/)(?:(?P<part>train|test_gallery)/(?P<subject>[^/]+)/(?P<hash>[^/]+)"
        rf"|test_probe/(?P<video>[^/]+))/{FRAME}\.(?i:png|jpe?g)$"
    )
    split_words = "train trains, test_gallery and test_probe are the test"
    protocols = (
        Protocol(
            "hid",
            title="HID",
            gallery=("gallery-*",),
            probes={"all": ("probe",)},
            gallery_words="test_gallery",
            probe_words="test_probe",
            gallery_views="all",
            labelled=False,
        ),
    )
    expected: Mapping[str, int] = {"train_subjects": 500}

    @classmethod
    def key(cls, path: str) -> Key | None:
        match = cls.pattern.search(path)
        if match is None:
            return None
        if match["video"] is not None:
            return match["video"], "probe", VIEW
        part = match["part"].removeprefix("test_")
        return match["subject"], f"{part}-{match['hash']}", VIEW

    @classmethod
    def key_of_folder(cls, folder: str) -> Key | None:
        """As for every layout; also whose folder lies above, for a probe needs its row in the
        submission even if all its frames lie too deep."""
        probe = re.search(r"(?:^|/)test_probe/(?P<video>[^/]+)(?:/|$)", folder)
        return (probe["video"], "probe", VIEW) if probe else super().key_of_folder(folder)

    def split(self, subject: str, sequence: str) -> str:
        return "train" if sequence.startswith("train-") else "test"
