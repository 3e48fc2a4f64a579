"""OUMVLP as other tools rearrange it."""

import re

from pipeline.layouts.layout import FRAME
from pipeline.layouts.oumvlp_release import OumvlpRelease


class OumvlpRearranged(OumvlpRelease):
    name = "OUMVLP, rearranged"
    form = "<subject>/<sequence>/<view>/<frame>.png of 5, 2 and 3 digits"
    pattern = re.compile(
        r"(?:^|/)(?P<subject>\d{5})/(?P<sequence>\d{2})/(?P<view>\d{3})/"
        rf"{FRAME}\.(?i:png)$"
    )
