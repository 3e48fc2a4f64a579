"""CASIA-B's silhouettes as released, in the split that most papers use (large-sample training)."""

import re
from collections.abc import Mapping

from pipeline.layouts.layout import FRAME, Layout
from pipeline.protocols import in_view_pairs_and_all_views


class CasiaB(Layout):
    name = "CASIA-B"
    form = "<subject: 001-124>/<nm-01..06|bg-01..02|cl-01..02>/<view: 000, 018 .. 180>/<frame>.png"
    pattern = re.compile(
        r"(?:^|/)(?P<subject>0(?!00)\d\d|1[01]\d|12[0-4])/"
        r"(?P<sequence>nm-0[1-6]|bg-0[12]|cl-0[12])/"
        r"(?P<view>000|018|036|054|072|090|108|126|144|162|180)/"
        rf"{FRAME}\.(?i:png)$"
    )
    split_words = "subjects 001-074 train, 075-124 are the test"
    protocols = in_view_pairs_and_all_views(
        title="CASIA-B",
        gallery=("nm-01", "nm-02", "nm-03", "nm-04"),
        probes={
            "NM": ("nm-05", "nm-06"),
            "BG": ("bg-01", "bg-02"),
            "CL": ("cl-01", "cl-02"),
        },
        gallery_words="nm-01 to nm-04",
        probe_words="nm-05, nm-06; bg-01, bg-02; cl-01, cl-02",
        views=tuple(f"{angle:03}" for angle in range(0, 181, 18)),
    )
    expected: Mapping[str, int] = {
        "subjects": 124,
        "train_subjects": 74,
        "test_subjects": 50,
        "views": 11,
    }

    def split(self, subject: str, sequence: str) -> str:
        return "train" if int(subject) <= 74 else "test"
