"""Subjects that are validated on, and so kept out of training."""

import numpy as np
import pandas as pd


def held_out(index: pd.DataFrame, subjects: int) -> list[str]:
    """Subjects to validate on instead of training on them; ``index`` is the store's.

    First the ones of the dataset's own ``val`` split; where they are too few, training subjects,
    spread evenly over the sorted ids.
    """
    own, training = (
        sorted(set(index.loc[index["split"] == split, "subject"])) for split in ("val", "train")
    )
    more = min(max(0, subjects - len(own)), len(training))
    spread = np.linspace(0, len(training) - 1, more).round().astype(int)
    return own[:subjects] + [training[i] for i in spread]
