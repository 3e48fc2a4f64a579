"""The page: what it says, that hostile names stay text, and that a real browser shows it."""

import html
import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.catalogue import Refusal, Release, refusal_table
from pipeline.description import describe, grids
from pipeline.description_page import write_description
from pipeline.silhouette_store import Silhouettes, SilhouetteStore
from pipeline.tables import KEY
from tests.browser import broken_pictures, chromium, opened, sideways
from tests.outline import Outline

NONE = refusal_table("oumvlp", [])
BAD = "<img src=x onerror=alert(1)>\"'&\x1b\u202e"
RELEASE = Release("release <script>", 28, 1_234_567, {"subjects": 10_307, "views": 2})

Written = tuple[str, dict[str, Any]]


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    write_store: Callable[..., SilhouetteStore],
    noise: Callable[[int, int], Silhouettes],
) -> Path:
    """40 subjects, 2 sequences, 3 views, 3 to 20 frames; a hole here and there, names to fear."""
    rows = [
        (f"{subject:03}", sequence, view, "train" if subject % 2 else "test", subject * 6 + i)
        for subject in range(40)
        for i, (sequence, view) in enumerate((s, v) for s in ("00", BAD) for v in ("0", "1", "2"))
        if (subject + 1) % (i + 3)
    ]
    path = tmp_path_factory.mktemp("store") / "silhouettes"
    write_store(path, [(*key, noise(n, 3 + n % 18)) for *key, n in rows])
    return path


@pytest.fixture
def store(folder: Path) -> SilhouetteStore:
    return SilhouetteStore(folder)


def written(
    folder: Path,
    store: SilhouetteStore,
    sequences: pd.DataFrame,
    refusals: dict[str, list[Refusal]],
    release: Release,
) -> Written:
    """The page and the numbers, written to ``folder``."""
    tables = {
        stage: refusal_table("oumvlp", refusals.get(stage, [])) for stage in ("ingest", "normalize")
    }
    combinations = grids(sequences, store.index)
    described = describe("oumvlp", sequences, store.index, tables, release, combinations)
    write_description(folder, described, combinations, store)
    page = (folder / "ingest.html").read_bytes().decode()
    return page, json.loads((folder / "ingest.json").read_bytes())


@pytest.fixture
def write(tmp_path: Path, store: SilhouetteStore) -> Callable[..., Written]:
    """``write(name, sequences, release)``: what is written in the folder ``name``."""

    def write(
        name: str = "report", sequences: pd.DataFrame = store.index, release: Release = RELEASE
    ) -> Written:
        return written(tmp_path / name, store, sequences, {}, release)

    return write


@pytest.fixture(scope="module")
def hostile(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A page with everything that it can hold: refusals, holes, differences, names to fear."""
    store = SilhouetteStore(folder)
    lost = store.index.iloc[[0]].assign(sequence="01")
    sequences = pd.concat([store.index, lost]).sort_values(KEY, ignore_index=True)
    frames = int(lost["n_frames"].iloc[0])
    refusals = {
        "ingest": [Refusal(BAD, BAD, BAD, BAD, 0), Refusal("a.7z", "../" * 30_000, "climbs out")],
        "normalize": [
            Refusal("b.7z", f"{i}", "dark", BAD, 1, *lost[KEY].iloc[0]) for i in range(frames)
        ],
    }
    return written(tmp_path_factory.mktemp("hostile"), store, sequences, refusals, RELEASE)


def test_names_to_fear_stay_text(hostile: Written) -> None:
    page, _ = hostile
    outline = Outline(page)
    assert not outline.open
    assert not outline.of("script")
    assert {str(image["src"])[:22] for image in outline.of("img")} == {"data:image/png;base64,"}
    allowed = {"class", "src", "width", "height", "alt"}
    assert all(set(image) - {"style"} == allowed for image in outline.of("img"))
    assert all(
        re.fullmatch(r"min-width: \d+px", image.get("style") or "min-width: 0px")
        for image in outline.of("img")
    )
    assert "onerror=alert(1)" in outline.text
    assert "Layout: release <script>; 28 containers." in outline.text
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert not re.search(r"https?:|url\(|@import|<link|<iframe", page)


def test_the_page_can_be_found_ones_way_in(hostile: Written) -> None:
    outline = Outline(hostile[0])
    levels = [int(tag[1]) for tag, _ in outline.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below <= above + 1 for above, below in itertools.pairwise(levels))
    assert len(outline.of("caption")) == len(outline.of("table")) >= 6
    assert all(image["alt"] for image in outline.of("img"))
    marks = {attributes["id"] for _, attributes in outline.elements if "id" in attributes}
    assert {str(link["href"]).removeprefix("#") for link in outline.of("a")} <= marks
    assert any(meta.get("name") == "viewport" for meta in outline.of("meta"))


def test_the_page_says_what_the_numbers_say(hostile: Written) -> None:
    page, numbers = hostile
    text = Outline(page).text
    assert numbers["accounting"]["files"]["holds"] is False
    assert "files seen 1 234 567 = frames catalogued" in text
    assert "does not hold" in text
    assert "Not everything adds up: 2 of 3 accounts hold." in text
    assert "subjects 10 307 40 10 267 fewer" in text
    assert "views 2 3 1 more" in text
    assert "Refused by ingest: 1 file." in text
    for split in ("train", "test"):
        counts = numbers["missing"][split]
        assert (
            f"{split}: {counts['missing']} of {counts['combinations']} missing, "
            f"{counts['refused']} refused" in text
        )
    assert numbers["missing"]["test"]["refused"] == 1
    assert "climbs out" in text


def test_the_table_beside_a_map_has_each_combinations_counts(hostile: Written) -> None:
    page, numbers = hostile
    tables = re.findall(r'<table class="counts">.*?</table>', page, re.DOTALL)
    assert len(tables) == len(numbers["combinations"]) == 2
    for table, grid in zip(tables, numbers["combinations"], strict=True):
        rows = [
            [html.unescape(cell).strip() for cell in re.findall(r"<t[hd].*?>(.*?)</t", row)]
            for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
        ]
        # as many sequences as views, or more: they go down
        down, across = grid["sequences"], grid["views"]
        missing, refused = grid["missing"], grid["refused"]
        if len(across) > len(down):
            down, across = across, down
            missing, refused = ([list(r) for r in zip(*n, strict=True)] for n in (missing, refused))
        assert [cell.split()[-1] for cell in rows[0][1:]] == [name.split()[-1] for name in across]
        assert [row[0] for row in rows[1:]] == down
        for row, absent, lost in zip(rows[1:], missing, refused, strict=True):
            expected = [f"{m} + {r}" if r else f"{m}" for m, r in zip(absent, lost, strict=True)]
            assert row[1:] == expected
    assert any(" + " in table for table in tables)


def test_a_page_of_nothing_refused(write: Callable[..., Written], store: SilhouetteStore) -> None:
    frames = int(store.index["n_frames"].sum())
    page, numbers = write(release=Release("generic", 1, frames, {}))
    text = Outline(page).text
    assert "By ingest: nothing" in text
    assert "By normalize: nothing" in text
    assert "Layout: generic; 1 container." in text
    assert "Everything adds up: 3 of 3 accounts hold." in text
    assert "Expected and found" not in text
    assert "does not hold" not in text
    assert numbers["reasons"] == []


def test_complete_splits_need_no_map(write: Callable[..., Written], store: SilhouetteStore) -> None:
    store.index = store.index[store.index["subject"] == "000"][1:4].reset_index(drop=True)
    store.index["sequence"], store.index["view"] = "00", ["0", "1", "2"]
    page, numbers = write(sequences=store.index)
    assert numbers["missing"] == {"test": {"combinations": 3, "missing": 0, "refused": 0}}
    assert "1 subject, each with 1 sequence from 3 views." in page
    assert page.count("<img") == 3 + 1


def test_names_of_their_own_have_no_map(
    write: Callable[..., Written], store: SilhouetteStore
) -> None:
    store.index["sequence"] = [f"hash{i}" for i in range(len(store.index))]
    page, numbers = write(sequences=store.index)
    assert numbers["missing"] == {}
    assert page.count("cannot be told") == 2


def test_same_inputs_same_bytes(
    write: Callable[..., Written], store: SilhouetteStore, tmp_path: Path
) -> None:
    write("one")
    store.index = store.index.copy()
    write("two", release=replace(RELEASE, expected=dict(reversed(RELEASE.expected.items()))))
    for name in ("ingest.html", "ingest.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_only_the_sample_is_read(
    write: Callable[..., Written], store: SilhouetteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    plain = SilhouetteStore.read

    def counted(self: SilhouetteStore, number: int) -> Silhouettes:
        read.append(number)
        return plain(self, number)

    monkeypatch.setattr(SilhouetteStore, "read", counted)
    write()
    assert len(read) == len(set(read)) == 12


def test_an_earlier_report_in_the_folder_is_left_alone(
    write: Callable[..., Written], tmp_path: Path
) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "metrics.json").write_text("{}", encoding="utf-8")
    write()
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {"metrics.json", "ingest.html", "ingest.json"}


def _file(folder: Path, page: str) -> str:
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    return path.as_uri()


def test_a_browser_shows_every_picture_and_logs_no_error(hostile: Written, tmp_path: Path) -> None:
    url = _file(tmp_path, hostile[0])
    with chromium() as browser:
        for width in (360, 1_200):
            with opened(browser, url, width) as page:  # nothing against the page's own policy
                assert page.locator("img").count() == 12 + 2 + 1
                assert not broken_pictures(page)
                # tables and maps scroll in boxes of their own, never the page
                assert sideways(page) <= 0


def test_the_browser_would_tell_of_what_is_broken_and_of_what_leaves_the_page(
    hostile: Written, tmp_path: Path
) -> None:
    broken = hostile[0].replace("base64,iVBOR", "base64,iVBOS", 1)
    wide = broken.replace("<main>", "<main><div style='width:3000px'>wide</div>")
    scripted = wide.replace("<main>", "<main><script>alert(1)</script>")
    lax = re.sub("<meta http-equiv[^>]*>", "", wide)
    outside = lax.replace("<main>", '<main><img src="http://127.0.0.1:9/x.png">')
    with chromium() as browser:
        with opened(browser, _file(tmp_path, wide), 360) as page:
            assert len(broken_pictures(page)) == 1
            assert sideways(page) > 2_000
        for page_text, complaint in [
            (scripted, "Content Security Policy"),
            (outside, "request elsewhere: http://127.0.0.1:9/x.png"),
        ]:
            with (
                pytest.raises(AssertionError, match=complaint),
                opened(browser, _file(tmp_path, page_text)),
            ):
                pass
