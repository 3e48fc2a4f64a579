import itertools
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.catalogue import Refusal, Release, refusal_table
from pipeline.description import (
    COLUMNS,
    describe,
    grids,
    sample,
)
from pipeline.tables import KEY

Key = tuple[str, str, str]

NONE = refusal_table("oumvlp", [])
NO_REFUSALS = {"ingest": NONE, "normalize": NONE}


def _table(rows: list[tuple[Key, str, int]]) -> pd.DataFrame:
    return pd.DataFrame([(*key, split, n) for key, split, n in rows], columns=COLUMNS)


def _described(
    sequences: pd.DataFrame,
    index: pd.DataFrame,
    refusals: dict[str, pd.DataFrame] | None = None,
    files_seen: int = 0,
    expected: dict[str, int] | None = None,
) -> dict[str, Any]:
    combinations = grids(sequences, index)
    release = Release("OUMVLP", 1, files_seen, expected or {})
    described = describe("oumvlp", sequences, index, refusals or NO_REFUSALS, release, combinations)
    json.dumps(described, allow_nan=False).encode()
    return described


@pytest.fixture
def holes() -> tuple[list[tuple[Key, str, int]], list[tuple[Key, str, int]]]:
    """Rows found and rows kept: 30 subjects of three splits, a fifth missing, some refused."""
    rng = np.random.default_rng(5)
    found = [
        ((f"{subject:03}", sequence, view), split, int(rng.integers(3, 200)))
        for subject in range(30)
        for split in [("test", "train", "val")[subject % 3]]
        for sequence in ("00", "01")
        for view in ("000", "015", "030", "090")
        if rng.random() < 0.8 and not (split == "val" and sequence == "01")
    ]
    return found, [row for row in found if rng.random() < 0.9]


def test_numbers_are_those_of_a_plain_loop(
    holes: tuple[list[tuple[Key, str, int]], list[tuple[Key, str, int]]],
) -> None:
    found, kept = holes
    described = _described(_table(found), _table(kept))
    assert list(described["splits"]) == ["train", "val", "test"]
    for split, row in described["splits"].items():
        here = [(key, n) for key, s, n in found if s == split]
        kept_here = [(key, n) for key, s, n in kept if s == split]
        subjects = sorted({key[0] for key, _ in here})
        assert row["subjects"] == len(subjects)
        assert row["views"] == 4
        assert row["sequences"] == len(here)
        assert row["sequences_kept"] == len(kept_here)
        assert row["frames"] == sum(n for _, n in here)
        assert row["frames_kept"] == sum(n for _, n in kept_here)
        of_each = sorted(sum(key[0] == subject for key, _ in here) for subject in subjects)
        assert row["sequences_of_a_subject"]["fewest"] == of_each[0]
        assert row["sequences_of_a_subject"]["median"] == np.median(of_each)
        assert row["sequences_of_a_subject"]["most"] == of_each[-1]
    found_keys, kept_keys = {key for key, *_ in found}, {key for key, *_ in kept}
    for grid in described["combinations"]:
        split = grid["split"]
        subjects = sorted({key[0] for key, s, _ in found if s == split})
        assert grid["sequences"] == (["00"] if split == "val" else ["00", "01"])
        totals = {"missing": 0, "refused": 0, "combinations": 0}
        for i, sequence in enumerate(grid["sequences"]):
            for j, view in enumerate(grid["views"]):
                keys = {(subject, sequence, view) for subject in subjects}
                missing, refused = keys - found_keys, keys & found_keys - kept_keys
                assert grid["missing"][i][j] == len(missing)
                assert grid["refused"][i][j] == len(refused)
                totals["missing"] += len(missing)
                totals["refused"] += len(refused)
                totals["combinations"] += len(keys)
        assert described["missing"][split] == totals
        assert totals["missing"]
        assert totals["refused"]
    assert described["found"]["sequences"] == len(found)
    assert described["found"]["subjects"] == len({key[0] for key in found_keys})


@pytest.mark.parametrize("longest", [10, 199, 5_000])
def test_every_length_is_in_one_bar(longest: int) -> None:
    lengths = [*np.random.default_rng(0).integers(5, longest, 300).tolist(), 5, longest]
    rows = [((f"{i:03}", "00", "000"), "train", n) for i, n in enumerate(lengths)]
    described = _described(_table(rows), _table(rows))
    bars = described["length_histogram"]
    assert len(bars) <= 60
    assert bars[0]["first"] == 5
    assert bars[-1]["first"] <= longest <= bars[-1]["last"]
    assert all(a["last"] + 1 == b["first"] for a, b in itertools.pairwise(bars))
    for bar in bars:
        assert bar["sequences"] == sum(bar["first"] <= n <= bar["last"] for n in lengths)
    assert described["lengths"] == {
        "fewest": 5,
        "median": np.median(lengths),
        "most": longest,
    }


def test_one_subject_without_refusals_is_complete() -> None:
    rows = [(("7", "00", view), "train", 9) for view in ("000", "090")]
    described = _described(_table(rows), _table(rows), files_seen=18)
    assert described["missing"] == {"train": {"combinations": 2, "missing": 0, "refused": 0}}
    assert described["reasons"] == []
    assert described["refused"]["ingest"] == {"rows": 0, "frames": 0}
    assert all(account["holds"] for account in described["accounting"].values())
    assert described["length_histogram"] == [{"first": 9, "last": 9, "sequences": 2}]


def test_names_of_their_own_cannot_be_missing() -> None:
    rows = [
        *((("a", f"hash{i}", "any"), "train", 5) for i in range(3)),
        *(((f"s{i}", f"hash{i}", "any"), "train", 5) for i in range(30)),
        *(((f"t{i}", "gallery", "any"), "test", 5) for i in range(30)),
    ]
    described = _described(_table(rows), _table(rows))
    assert list(described["missing"]) == ["test"]
    assert described["splits"]["train"]["sequences_of_a_subject"]["most"] == 3


def test_memory_does_not_grow_with_names_that_are_not_shared() -> None:
    # all combinations would be 10^12
    rows = [((f"{i}", f"hash{i}", f"{i}"), "train", 5) for i in range(10_000)]
    assert grids(_table(rows), _table(rows)) == []


def test_accounts_hold_or_are_told() -> None:
    found = _table([(("1", "00", "000"), "train", 10), (("2", "00", "000"), "train", 6)])
    kept = _table([(("1", "00", "000"), "train", 8)])
    ingest = refusal_table("oumvlp", [Refusal("a.7z", "x.txt", "not a frame")])
    normalize = [
        Refusal("a.7z", "1/1.png", "dark", "", 2, "1", "00", "000"),
        Refusal("a.7z", "2", "short", "", 6, "2", "00", "000"),
        Refusal("a.7z", "", "the archive is damaged", "cut short", frames=0),
    ]

    def accounts(files_seen: int, refused: list[Refusal]) -> dict[str, Any]:
        refusals = {"ingest": ingest, "normalize": refusal_table("oumvlp", refused)}
        described = _described(found, kept, refusals, files_seen)
        return {name: row["holds"] for name, row in described["accounting"].items()}

    assert accounts(17, normalize) == {"files": True, "frames": True, "sequences": True}
    assert accounts(18, normalize) == {"files": False, "frames": True, "sequences": True}
    assert accounts(17, normalize[:1]) == {"files": True, "frames": False, "sequences": False}
    swapped = [Refusal("a.7z", "1", "dark", "", 8, "1", "00", "000")]
    assert accounts(17, swapped) == {"files": True, "frames": True, "sequences": False}


def test_silhouettes_that_no_catalogue_knows_do_not_add_up() -> None:
    found = _table([(("1", "00", "000"), "train", 5), (("2", "00", "000"), "train", 5)])
    kept = _table([(("1", "00", "000"), "train", 5), (("3", "00", "000"), "train", 5)])
    described = _described(found, kept)
    assert described["accounting"]["frames"]["holds"]
    assert described["accounting"]["sequences"] == {"counted": 3, "add_up": 1, "holds": False}
    assert described["missing"]["train"]["refused"] == 1


def test_expected_stands_beside_found() -> None:
    rows = [
        (("1", "00", "000"), "train", 5),
        (("3", "00", "090"), "train", 5),
        (("2", "00", "000"), "test", 5),
    ]
    expected = {"subjects": 4, "train_subjects": 2, "val_subjects": 1, "views": 1, "sequences": 3}
    described = _described(_table(rows), _table(rows), expected=expected)
    assert described["expected"] == {
        "subjects": {"expected": 4, "found": 3, "difference": -1},
        "train_subjects": {"expected": 2, "found": 2, "difference": 0},
        "val_subjects": {"expected": 1, "found": 0, "difference": -1},
        "views": {"expected": 1, "found": 2, "difference": 1},
        "sequences": {"expected": 3, "found": 3, "difference": 0},
    }


def test_reasons_come_with_counts_and_examples_from_all_over() -> None:
    rows = _table([(("1", "00", "000"), "train", 5)])
    many = [Refusal(f"{i:03}.7z", f"{i}.png", "dark", "", 2) for i in range(101)]
    few = [Refusal("a.7z", "", "cut", "at 5", 0), Refusal("b.7z", "m", "cut", "at 6", 0)]
    refusals = {"ingest": refusal_table("oumvlp", few), "normalize": refusal_table("oumvlp", many)}
    cut, dark = _described(rows, rows, refusals)["reasons"]
    assert (cut["stage"], cut["reason"], cut["rows"], cut["frames"]) == ("ingest", "cut", 2, 0)
    assert cut["examples"] == [
        {"container": "a.7z", "member": "", "detail": "at 5"},
        {"container": "b.7z", "member": "m", "detail": "at 6"},
    ]
    assert (dark["stage"], dark["rows"], dark["frames"]) == ("normalize", 101, 202)
    assert [example["container"] for example in dark["examples"]] == [
        "000.7z",
        "025.7z",
        "050.7z",
        "075.7z",
        "100.7z",
    ]


def test_more_frames_come_first() -> None:
    rows = _table([(("1", "00", "000"), "train", 5)])
    refusals = refusal_table(
        "oumvlp",
        [Refusal("a", "", "few"), Refusal("b", "", "many", "", 7), Refusal("c", "", "few")],
    )
    reasons = _described(rows, rows, {"ingest": refusals, "normalize": NONE})["reasons"]
    assert [row["reason"] for row in reasons] == ["many", "few"]


def test_hostile_names_are_escaped_wherever_they_stand() -> None:
    bad = "\x1b\u202e"  # Parquet holds no surrogates, JSON does
    rows = _table([((bad, bad, bad), "train", 5)])
    refused = [Refusal(bad, bad, bad, bad)]
    refusals = {"ingest": refusal_table("oumvlp", refused), "normalize": NONE}
    text = json.dumps(_described(rows, rows, refusals), ensure_ascii=False)
    text.encode()
    assert bad[1] not in text
    assert text.count("\\u202e") == 6


def _index(n_subjects: int, splits: int = 3) -> pd.DataFrame:
    rows = [
        ((f"{i:05}", sequence, view), ("train", "val", "test")[i % splits], 9)
        for i in range(n_subjects)
        for sequence in ("00", "01")
        for view in ("000", "015", "030", "090")
    ]
    return _table(rows)


def test_the_sample_is_the_same_every_time_and_spread() -> None:
    index = _index(60)
    numbers = sample(index, 12)
    assert numbers == sample(index.copy(), 12)
    assert len(set(numbers)) == 12
    rows = index.iloc[numbers]
    assert rows["split"].tolist() == ["train"] * 4 + ["val"] * 4 + ["test"] * 4
    assert rows["view"].value_counts().tolist() == [3, 3, 3, 3]
    assert rows["subject"].nunique() == 12
    assert numbers != list(range(12))
    few = _index(12)
    assert few.iloc[sample(few, 12)]["subject"].nunique() == 12


def test_a_small_split_does_not_empty_the_sample() -> None:
    index = pd.concat([_index(1, splits=1), _index(9, splits=1).assign(split="test")])
    index = index.drop_duplicates([*KEY, "split"], ignore_index=True)
    assert len(sample(index, 30)) == 30
    assert sorted(sample(index[:5], 12)) == list(range(5))
