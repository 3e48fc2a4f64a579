"""The page of the ablations, on figures made up for it."""

import math
import re

import numpy as np
import pytest

from pipeline.ablation_page import Claim, Outcome, Outcomes, Variant, ablations_page, verdict
from pipeline.estimates import Figure

VARIANTS = [Variant("plain", "as it is", {}), Variant("other", "changed", {"model.parts": 4})]
CLAIM = Claim("Plain is better", "plain", "other")


def made_up(value: float, spread: float = 0.0, seed: int = 0) -> Figure:
    draws = value + spread * np.random.default_rng(seed).standard_normal(1000)
    return Figure(value, draws)


def outcome(all_figure: Figure, nm: Figure | None = None, p: float = 6.5) -> Outcome:
    return Outcome({"OUMVLP": all_figure, "CASIA-E NM": nm or made_up(50.0)}, {"pretrain": p}, 12.4)


def page(outcomes: Outcomes) -> str:
    return ablations_page(
        VARIANTS,
        [CLAIM],
        outcomes,
        missing=["ablation-other-1"],
        data="walkers",
        command="make ablations",
        commit="abc",
        machine="a machine",
    )


def rows(text: str, heading: str) -> dict[str, list[str]]:
    """Cells of the table below a heading, by what stands in the first column."""
    section = text.partition(f"## {heading}")[2].partition("\n## ")[0]
    table = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:1] == "|"]
    return {f"{cells[0]} {cells[1]}" if "Rank-1 of" in heading else cells[0]: cells[1:]
            for cells in table[2:]}  # fmt: skip


def test_values_and_draws_are_averaged_over_seeds_and_paired() -> None:
    plain = [made_up(60.0, 3, seed=1), made_up(70.0, 3, seed=2)]
    other = [made_up(52.0, 3, seed=1), made_up(61.0, 3, seed=2)]  # the same subjects are drawn
    text = page(
        {
            "plain": {seed: outcome(figure) for seed, figure in enumerate(plain)},
            "other": {seed: outcome(figure) for seed, figure in enumerate(other)},
        }
    )
    low, high = np.percentile((plain[0].draws + plain[1].draws) / 2, [2.5, 97.5])
    rank1 = rows(text, "Rank-1 (%)")
    assert rank1["`plain`"][:2] == ["as it is", f"65.0 [{low:.1f}, {high:.1f}]"]
    assert rank1["`other`"][1].startswith("56.5 [")
    # what subjects change in both alike is no part of the difference
    assert rows(text, "Difference")["`other`"][0] == "-8.5 [-8.5, -8.5]"
    each = rows(text, "Rank-1 of each seed")
    assert each["`plain` 1"] == ["1", "70.0", "50.0", "6.50", "12"]
    assert "4 experiments" in text
    assert "up to 10.0 points apart (OUMVLP of `plain`)" in text


def test_only_common_seeds_are_compared() -> None:
    text = page(
        {
            "plain": {0: outcome(made_up(60.0)), 1: outcome(made_up(90.0))},
            "other": {0: outcome(made_up(58.0))},
        }
    )
    assert rows(text, "Difference")["`other`"][0].startswith("-2.0 ")
    assert "3 experiments" in text
    assert "**Missing: 1 of those planned**" in text
    assert ": `ablation-other-1`." in text
    assert "(one seed, others may differ)" in text


def test_one_seed_says_nothing_of_others() -> None:
    text = page({"plain": {0: outcome(made_up(60.0))}, "other": {0: outcome(made_up(50.0))}})
    assert "how far seeds lie apart is not known" in text


def test_a_variant_that_has_not_run_is_shown_as_missing() -> None:
    text = page({"plain": {0: outcome(made_up(60.0))}})
    assert rows(text, "Rank-1 (%)")["`other`"] == ["changed", "–", "–"]
    assert rows(text, "Difference")["`other`"] == ["–", "–"]
    assert "**Not tested**" in text


def test_pooling_without_p_and_unknown_times_are_shown_as_such() -> None:
    unknown = Outcome({"OUMVLP": made_up(1.0)}, {}, math.nan)
    each = rows(page({"plain": {0: unknown}}), "Rank-1 of each seed")
    assert each["`plain` 0"] == ["0", "1.0", "none", "–"]


@pytest.mark.parametrize(
    ("better", "worse", "word"),
    [
        ([(60, 1), (61, 1)], [(50, 1), (52, 1)], "Reproduced"),
        ([(50, 1), (52, 1)], [(60, 1), (61, 1)], "Not reproduced, but contradicted"),
        # beyond what subjects would change, but the seeds disagree
        ([(60, 1), (50, 1)], [(50, 1), (52, 1)], "Not reproduced: no difference"),
        ([(60, 9), (61, 9)], [(59, 1), (60, 1)], "Not reproduced: no difference"),
    ],
)
def test_a_verdict_needs_the_interval_and_all_seeds(
    better: list[tuple[float, float]], worse: list[tuple[float, float]], word: str
) -> None:
    outcomes = {
        name: {
            seed: Outcome({"OUMVLP": made_up(value, spread, seed)}, {}, 0.0)
            for seed, (value, spread) in enumerate(values)
        }
        for name, values in (("plain", better), ("other", worse))
    }
    assert verdict(CLAIM, outcomes).startswith(f"Plain is better. **{word}")


def test_a_verdict_names_what_it_rests_on() -> None:
    outcomes = {
        "plain": {0: outcome(made_up(60.0), made_up(40.0))},
        "other": {0: outcome(made_up(50.0), made_up(43.0))},
    }
    assert verdict(CLAIM, outcomes) == (
        "Plain is better. **Reproduced in part** (one seed, others may differ); "
        "better: OUMVLP +10.0 [+10.0, +10.0]; worse: CASIA-E NM -3.0 [-3.0, -3.0]."
    )


def test_data_on_which_both_are_the_same_network_is_left_out() -> None:
    same = made_up(60.0)
    outcomes = {
        "plain": {0: outcome(same, made_up(45.0))},
        "other": {0: outcome(same, made_up(40.0))},
    }
    found = verdict(CLAIM, outcomes)
    assert "**Reproduced** " in found
    assert "OUMVLP" not in found
    outcomes["other"] = outcomes["plain"]
    assert "**Not tested**: both gave the same figures" in verdict(CLAIM, outcomes)


def test_every_difference_has_a_sign() -> None:
    text = page(
        {"plain": {0: outcome(made_up(60.0))}, "other": {0: outcome(made_up(61.0), made_up(50.0))}}
    )
    for cells in rows(text, "Difference").values():
        assert all(re.match(r"[+-]\d", cell) for cell in cells)
