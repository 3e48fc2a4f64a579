"""OUMVLP as released: one archive, or one folder, for each view and sequence."""

import re
from collections.abc import Mapping

from pipeline.layouts.layout import FRAME, Layout
from pipeline.protocols import in_view_pairs_and_all_views


class OumvlpRelease(Layout):
    name = "OUMVLP, release"
    form = "Silhouette_<view>-<sequence>/<subject>/<frame>.png"
    dataset = "oumvlp"
    pattern = re.compile(
        r"(?:^|/)Silhouette_(?P<view>\d{3})-(?P<sequence>\d{2})/(?P<subject>\d{5})/"
        rf"{FRAME}\.(?i:png)$"
    )
    split_words = "odd subjects up to 10305 train, even ones and 10307 are the test"
    protocols = in_view_pairs_and_all_views(
        title="OUMVLP",
        gallery=("01",),
        probes={"all": ("00",)},
        gallery_words="sequence 01",
        probe_words="sequence 00",
        views=tuple(f"{angle:03}" for angle in (*range(0, 91, 15), *range(180, 271, 15))),
    )
    expected: Mapping[str, int] = {
        "subjects": 10_307,
        "train_subjects": 5_153,
        "test_subjects": 5_154,
        "views": 14,
    }

    def split(self, subject: str, sequence: str) -> str:
        number = int(subject)
        return "train" if number % 2 and number <= 10305 else "test"
