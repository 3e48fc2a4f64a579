"""CASIA-E as released: three zips that hold a tar for each subject, or what was in them."""

import re
from collections.abc import Collection
from pathlib import Path

from pipeline.layouts.layout import FRAME, Key, Layout
from pipeline.protocols import in_view_pairs_and_all_views


def _sequences(scenes: tuple[str, ...], condition: str) -> tuple[str, ...]:
    return tuple(
        f"{height}-{scene}-{condition}-{number}"
        for height in "HL"
        for scene in scenes
        for number in (1, 2)
    )


class CasiaERelease(Layout):
    name = "CASIA-E, release"
    form = "<subject>/<H|L>/<scene>/<nm|bg|cl>/<view>/<number>/<frame>.jpg"
    dataset = "casia_e"
    pattern = re.compile(
        r"(?:^|/)(?P<subject>\d{3,4})/(?P<height>[HL])/(?P<scene>scene[123]|scene3_s)/"
        rf"(?P<condition>nm|bg|cl)/(?P<view>\d{{3}})/(?P<number>\d+)/{FRAME}\.(?i:jpe?g)$"
    )

    def __init__(self, root: Path, keys: Collection[Key], split: str) -> None:
        # the height is part of the sequence's name; a few walks have the fourteenth view, 270
        self.expected = {"subjects": 1_014, "views": 14}
        self._opengait = split == "opengait"
        if self._opengait:
            self.split_words = "OpenGait's: subjects 1-200 train, the rest is the test"
            self.expected |= {"train_subjects": 200, "test_subjects": 814}
            title = "CASIA-E, OpenGait's split 200/814"
        else:
            title = "CASIA-E, release split 500/114/400"
            self.split_words = "subjects 1-500 train, 501-614 validate, the rest is the test"
            self.expected |= {"train_subjects": 500, "val_subjects": 114, "test_subjects": 400}
        # OpenGait's gallery and probes, in either split
        self.protocols = in_view_pairs_and_all_views(
            title=title,
            gallery=_sequences(("scene1",), "nm"),
            probes={
                condition.upper(): _sequences(("scene2", "scene3", "scene3_s"), condition)
                for condition in ("nm", "bg", "cl")
            },
            gallery_words="{H,L}-scene1-nm-{1,2}",
            probe_words="{H,L}-{scene2,scene3,scene3_s}-{nm,bg,cl}-{1,2}",
            views=tuple(f"{angle:03}" for angle in range(0, 181, 15)),
            excluded_views=("270",),
            excluded_words="scene1 with bag or coat, walks past the second",
        )

    @classmethod
    def key(cls, path: str) -> Key | None:
        match = cls.pattern.search(path)
        if match is None:
            return None
        sequence = "-".join(match.group("height", "scene", "condition", "number"))
        return match["subject"], sequence, match["view"]

    def split(self, subject: str, sequence: str) -> str:
        number = int(subject)
        if self._opengait:
            return "train" if number <= 200 else "test"
        return "train" if number <= 500 else "val" if number <= 614 else "test"
