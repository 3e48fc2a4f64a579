"""The layouts in which silhouettes may lie in a root, in order of precedence.

How to add one: docs/layouts.md.
"""

from pipeline.layouts.casia_b import CasiaB
from pipeline.layouts.casia_e_release import CasiaERelease
from pipeline.layouts.generic import Generic
from pipeline.layouts.hid import Hid
from pipeline.layouts.layout import Key, Layout
from pipeline.layouts.oumvlp_rearranged import OumvlpRearranged
from pipeline.layouts.oumvlp_release import OumvlpRelease

LAYOUTS: tuple[type[Layout], ...] = (
    OumvlpRelease,
    OumvlpRearranged,
    CasiaERelease,
    CasiaB,
    Hid,
    Generic,  # fits nearly everything: only where nothing else does
)


def recognize_own(path: str) -> tuple[str, Key] | None:
    """As ``recognize``, but for the generic layout alone: for a root with a dataset.yaml."""
    key = Generic.key(path)
    return None if key is None else (Generic.name, key)


def recognize(path: str) -> tuple[str, Key] | None:
    """The first layout's name whose frame would lie at ``path``, and whose frame it is."""
    for layout in LAYOUTS:
        key = layout.key(path)
        if key is not None:
            return layout.name, key
    return None
