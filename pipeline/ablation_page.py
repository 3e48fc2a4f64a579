"""docs/ablations.md from the figures of the experiments: tables, and a sentence on each claim.

Every word about a result follows from the figures: none is typed by hand.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.estimates import Estimate, Figure


@dataclass(frozen=True)
class Variant:
    """A network, or a way to train it."""

    name: str
    words: str
    settings: dict[str, str | float | bool]
    """What differs from the baseline, under the full keys of params.yaml."""


@dataclass(frozen=True)
class Claim:
    """That one variant is better than another."""

    words: str
    better: str
    worse: str


@dataclass(frozen=True)
class Outcome:
    """What one experiment, a variant with one seed, came to."""

    rank1: dict[str, Figure]
    """By column of the tables: a dataset, or a dataset and a condition."""
    final_p: dict[str, float]
    """Of each training stage; empty where pooling has no p."""
    seconds: float
    """Of both trainings; NaN where it is not known."""


Outcomes = dict[str, dict[int, Outcome]]
"""Of each variant that has any: by seed."""

PAGE = """# Ablations

Which parts of the paper make a difference on {data}? Written by `make ablations`; what it
compares stands in `pipeline/ablations.py`.

```
{command}
```

{count} experiments at commit {commit}, on {machine}.
{missing}

Settings are those of `params.yaml`, but for the command's, and for what the second column says.

- Rank-1 is that of unseen subjects by each dataset's headline protocol, averaged over seeds. In
  brackets: the 95 % interval of the bootstrap over test subjects (`gaitgl/bootstrap.py`).
  Differences are between the same subjects and the same seeds.
- An interval says what other subjects would change, and nothing of what other seeds would: for that
  there is the third table. Of many intervals at 95 %, one in twenty misses by chance.
- A training far shorter than the paper's (250 000 and 15 000 steps) says which network learns
  faster, which need not be the one that ends better.
- With the activation after the sum, two branches that are added are one convolution with the sum of
  their kernels, but for the rows beside the parts' borders, and each step moves both kernels. What
  they gain over one branch may be those larger steps.

`dvc exp show` lists all experiments. In MLflow (`make ui`) one filter shows them:
`tags.dvc_exp LIKE 'ablation-%' AND tags.stage = 'evaluate'`.

## Rank-1 (%)

{rank1}

## Difference from `{baseline}` (points)

{changes}

## Rank-1 of each seed, p and time

{spread}

{seeds}

## Claims

A difference counts where its interval leaves out 0 and all seeds agree on its sign.

{verdicts}
"""


def ablations_page(
    variants: Sequence[Variant],
    claims: Sequence[Claim],
    outcomes: Outcomes,
    *,
    missing: Sequence[str],
    data: str,
    command: str,
    commit: str,
    machine: str,
) -> str:
    """The whole page. The first of ``variants`` is the baseline; ``missing`` are the names of
    experiments that should be among ``outcomes`` and are not."""
    return PAGE.format(
        data=data,
        command=command,
        count=sum(map(len, outcomes.values())),
        missing=_missing_words(missing),
        commit=commit,
        machine=machine,
        baseline=variants[0].name,
        rank1=_rank1_table(variants, outcomes),
        changes=_change_table(variants, outcomes),
        spread=_spread_words(outcomes),
        seeds=_seed_table(variants, outcomes),
        verdicts="\n".join(f"- {verdict(claim, outcomes)}" for claim in claims),
    )


def verdict(claim: Claim, outcomes: Outcomes) -> str:
    """Whether a claim holds here, and by which differences."""
    better, worse = (outcomes.get(name, {}) for name in (claim.better, claim.worse))
    seeds = sorted(better.keys() & worse.keys())
    if not seeds:
        return f"{claim.words}. **Not tested**: no seed that both have run with."
    seen: dict[str, list[str]] = {"better": [], "worse": [], "not settled": []}
    for column in better[seeds[0]].rank1:
        change = _change(worse, better, column)
        each = [
            better[seed].rank1[column].value - worse[seed].rank1[column].value for seed in seeds
        ]
        if not any(each):
            continue  # the same network
        if change.low > 0 and min(each) > 0:
            word = "better"
        elif change.high < 0 and max(each) < 0:
            word = "worse"
        else:
            word = "not settled"
        seen[word].append(f"{column} {_signed(change)}")
    if not any(seen.values()):
        return f"{claim.words}. **Not tested**: both gave the same figures everywhere."
    if seen["better"]:
        head = "Reproduced" if not (seen["worse"] or seen["not settled"]) else "Reproduced in part"
    elif seen["worse"]:
        head = "Not reproduced, but contradicted"
    else:
        head = "Not reproduced: no difference that can be told from chance"
    details = "; ".join(f"{word}: {', '.join(found)}" for word, found in seen.items() if found)
    count = "one seed, others may differ" if len(seeds) == 1 else f"{len(seeds)} seeds"
    return f"{claim.words}. **{head}** ({count}); {details}."


def _missing_words(missing: Sequence[str]) -> str:
    if not missing:
        return "Nothing is missing."
    names = ", ".join(f"`{name}`" for name in missing)
    return f"**Missing: {len(missing)} of those planned**: {names}."


def _rank1_table(variants: Sequence[Variant], outcomes: Outcomes) -> str:
    columns = _columns(outcomes)
    rows = []
    for variant in variants:
        found = outcomes.get(variant.name)
        cells = [_interval(_mean(found, c)) for c in columns] if found else ["–"] * len(columns)
        rows.append([f"`{variant.name}`", variant.words, *cells])
    return _markdown(["variant", "", *columns], rows)


def _change_table(variants: Sequence[Variant], outcomes: Outcomes) -> str:
    columns = _columns(outcomes)
    baseline = outcomes.get(variants[0].name, {})
    rows = []
    for variant in variants[1:]:
        found = outcomes.get(variant.name, {})
        changes = [_change(baseline, found, column) for column in columns]
        rows.append([f"`{variant.name}`", *map(_signed, changes)])
    return _markdown(["variant", *columns], rows)


def _seed_table(variants: Sequence[Variant], outcomes: Outcomes) -> str:
    columns = _columns(outcomes)
    rows = []
    for variant in variants:
        for seed, outcome in sorted(outcomes.get(variant.name, {}).items()):
            values = [f"{outcome.rank1[column].value:.1f}" for column in columns]
            p = " → ".join(f"{p:.2f}" for p in outcome.final_p.values()) or "none"
            seconds = "–" if math.isnan(outcome.seconds) else f"{outcome.seconds:.0f}"
            rows.append([f"`{variant.name}`", str(seed), *values, p, seconds])
    return _markdown(["variant", "seed", *columns, "final p", "training, s of wall clock"], rows)


def _spread_words(outcomes: Outcomes) -> str:
    """How far the seeds of one variant lie apart at most."""
    largest, column, name = max(
        (max(values) - min(values), column, name)
        for name, found in outcomes.items()
        for column in _columns(outcomes)
        for values in [[outcome.rank1[column].value for outcome in found.values()]]
    )
    if all(len(found) == 1 for found in outcomes.values()):
        return "There is one seed of each, so how far seeds lie apart is not known."
    return (
        f"Seeds of one variant lie up to {largest:.1f} points apart ({column} of `{name}`): where "
        "variants differ by less, it takes more seeds or longer trainings to tell them apart."
    )


def _change(before: dict[int, Outcome], after: dict[int, Outcome], column: str) -> Estimate:
    """On the seeds that both have, paired by subjects; NaN where there are none."""
    seeds = before.keys() & after.keys()
    if not seeds:
        return Estimate(math.nan)
    first, second = (
        _mean({seed: found[seed] for seed in sorted(seeds)}, column) for found in (before, after)
    )
    return first.change_to(second)


def _mean(found: dict[int, Outcome], column: str) -> Figure:
    """Over seeds: of the values, and of what they are in each draw of subjects."""
    figures = [outcome.rank1[column] for outcome in found.values()]
    draws = [figure.draws for figure in figures if figure.draws is not None]
    return Figure(
        float(np.mean([figure.value for figure in figures])),
        np.mean(draws, axis=0) if draws else None,
    )


def _columns(outcomes: Outcomes) -> list[str]:
    return [*next(iter(next(iter(outcomes.values())).values())).rank1]


def _interval(figure: Figure) -> str:
    estimate = figure.estimate()
    if math.isnan(estimate.low):
        return f"{estimate.value:.1f}"
    return f"{estimate.value:.1f} [{estimate.low:.1f}, {estimate.high:.1f}]"


def _signed(change: Estimate) -> str:
    if math.isnan(change.value):
        return "–"
    if math.isnan(change.low):
        return f"{change.value:+.1f}"
    return f"{change.value:+.1f} [{change.low:+.1f}, {change.high:+.1f}]"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
