"""The page of a report: what it says, that names stay text, and that a real browser shows it."""

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pandas as pd
import pytest

from gaitgl.distances import pair_distances
from pipeline.distance_pass import Method
from pipeline.embedding_file import Embeddings
from pipeline.embedding_map import embedding_map
from pipeline.estimates import by_view
from pipeline.evaluation import Evaluation, evaluate
from pipeline.layouts.casia_e_release import CasiaERelease
from pipeline.layouts.hid import Hid
from pipeline.layouts.oumvlp_release import OumvlpRelease
from pipeline.protocols import Protocol
from pipeline.report_page import write_page
from pipeline.silhouette_store import Silhouettes, SilhouetteStore
from pipeline.tables import KEY
from pipeline.training_record import TrainingRecord
from tests.browser import broken_pictures, chromium, opened, sideways
from tests.outline import Outline
from tests.pipeline.walks import walks

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CASIA_E = CasiaERelease(Path(), [], "release").protocols
SEQUENCES = ("H-scene1-nm-1", "L-scene2-nm-1", "H-scene3-bg-2", "L-scene3_s-cl-1")
BAD = "<img src=x onerror=alert(1)>\"'&"
SETTINGS = {
    "protocols": ["view_pairs", "all_views"],
    "distance": "euclidean",
    "reranking.method": "none",
    "cmc_ranks": 20,
    "submission.columns": "videoID,subjectID",
}
MADE_FROM = {"embeddings": "e" * 64, "protocols": "f" * 64, "commit of the code": "c0ffee"}
TRAINING = {
    "subjects_per_batch": 8,
    "sequences_per_subject": 4,
    "clip_frames": 12,
    "steps": 3,
    "lr": 1.5e-3,
    "lr_drops": [2],
    "validation_subjects": 0,
}
HISTORY = pd.DataFrame(
    {"step": [1, 2, 3], "loss": [0.3, 0.2, 0.25], "active_share": [1, 0.5, 0.2], "p": [6.5, 6.4, 6]}
)
PRETRAIN = TrainingRecord(
    "pretrain",
    "oumvlp",
    TRAINING,
    0,
    (),
    {"parts": 2},
    123_456,
    10,
    60,
    HISTORY,
    "a" * 64,
    "b" * 64,
)
FINETUNE = replace(PRETRAIN, stage="finetune", dataset="casia_e", starts_from=("pretrain",))


@dataclass
class Case:
    """Everything that a page is made of."""

    keys: pd.DataFrame
    embeddings: Embeddings
    protocols: tuple[Protocol, ...]
    evaluation: Evaluation
    store: SilhouetteStore
    records: tuple[TrainingRecord, ...] = (PRETRAIN, FINETUNE)

    def write(self, folder: Path) -> str:
        """Write the report and return the page."""
        plane = embedding_map(self.keys, self.embeddings, self.protocols[0])
        write_page(
            folder,
            self.evaluation,
            self.protocols,
            self.records,
            plane,
            self.store,
            SETTINGS,
            MADE_FROM,
        )
        return (folder / "index.html").read_bytes().decode()


@pytest.fixture(scope="module")
def case(
    tmp_path_factory: pytest.TempPathFactory,
    write_store: Callable[..., SilhouetteStore],
    noise: Callable[[int, int], Silhouettes],
) -> Case:
    """Three conditions, two protocols, hard to tell apart; one subject's name is to be feared."""
    keys, embeddings = walks(SEQUENCES, views=("000", "045", "090"), noise=2)
    keys["subject"] = keys["subject"].replace("00002", BAD)
    evaluation = evaluate(keys, embeddings, CASIA_E, Method(shown=False), 20)
    evaluation = replace(evaluation, notes=["Three were refused."])
    rows = [
        (*key, "test", noise(i, 3 + i % 18))
        for i, key in enumerate(keys[KEY].itertuples(index=False, name=None))
    ]
    store = write_store(tmp_path_factory.mktemp("page") / "silhouettes", rows)
    return Case(keys, embeddings, CASIA_E, evaluation, store)


@pytest.fixture(scope="module")
def folder(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the case, written; do not write there."""
    path = tmp_path_factory.mktemp("report")
    case.write(path)
    return path


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "index.html").read_bytes().decode()


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    with chromium() as started:
        yield started


def test_names_to_fear_stay_text_and_nothing_is_asked_from_elsewhere(page: str) -> None:
    outline = Outline(page)
    assert not outline.open
    assert not outline.of("script")
    assert {str(image["src"])[:22] for image in outline.of("img")} == {"data:image/png;base64,"}
    assert "onerror=alert(1)" in outline.text
    assert not re.search(r"https?:|url\(|@import|<link|<iframe", page)


def test_the_page_can_be_found_ones_way_in(page: str) -> None:
    outline = Outline(page)
    levels = [int(tag[1]) for tag, _ in outline.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below <= above + 1 for above, below in itertools.pairwise(levels))
    assert len(outline.of("caption")) == len(outline.of("table")) >= 10
    assert all(image["alt"] for image in outline.of("img"))
    marks = {attributes["id"] for _, attributes in outline.elements if "id" in attributes}
    assert {str(link["href"]).removeprefix("#") for link in outline.of("a")} == marks


def test_the_headline_and_every_figure_stand_with_their_intervals(page: str, case: Case) -> None:
    text = Outline(page).text
    for result in case.evaluation.results:
        for condition, estimates in result.estimates.items():
            rank1 = estimates["rank1"]
            interval = f"{rank1.low:.1f}–{rank1.high:.1f}"
            assert f"Rank-1, {condition} {rank1.value:.1f} % 95 %: {interval}" in text
        names = {"map": "mAP", "eer": "EER", "tar_far_1e-2": "TAR at FAR 1 %"}
        for name, words in names.items():
            found = [e[name] for e in result.estimates.values() if name in e]
            row = " ".join(f"{e.value:.1f} {e.low:.1f}–{e.high:.1f}" for e in found)
            assert not found or f"{words} {row}" in text
        for rule in result.protocol.rules():
            assert rule in text
    assert "probe view NM BG CL 000" in text
    probes = case.evaluation.results[1].probes
    names = ("rank1", "rank5", "map", "minp")
    first = {c: [f"{by_view(probes, c)[name][0]:.1f}" for name in names] for c in ("NM", "BG")}
    words = " ".join(f"000 {condition} {' '.join(row)}" for condition, row in first.items())
    assert f"probe view Rank-1 Rank-5 mAP mINP {words} 000 CL" in text
    assert "Excluded views: 270." in text
    assert "with other test subjects against this same gallery, not with another training" in text
    assert "Rank-k counts gallery sequences, not subjects, as OpenGait does" in text
    assert "Three were refused." in text
    assert "matched probes only" not in text
    assert text.count("both conventions give the same figures") == 2
    assert "lack an entry" not in text


def test_a_probe_without_a_counterpart_gives_both_conventions_a_line(
    case: Case, tmp_path: Path
) -> None:
    lone = (case.keys["subject"] == "00004") & (case.keys["sequence"] == SEQUENCES[0])
    keys, embeddings = case.keys[~lone].reset_index(drop=True), case.embeddings[~lone]
    evaluation = evaluate(keys, embeddings, CASIA_E, Method(shown=False), 20)
    fewer = replace(case, keys=keys, embeddings=embeddings, evaluation=evaluation)
    text = Outline(fewer.write(tmp_path)).text
    for result in evaluation.results:
        row = [e["rank5_matched_probes"] for e in result.estimates.values()]
        words = " ".join(f"{e.value:.1f} {e.low:.1f}–{e.high:.1f}" for e in row)
        assert f"Rank-5, matched probes only {words}" in text
    assert "both conventions give" not in text
    # three probe views of the subject, each without two other views' entries; none is in any view
    assert "NM: 3 of 36 probes lack an entry at some other view (6 of 72 comparisons)." in text
    assert "CL: 3 of 36 probes lack an entry in the gallery." in text


def test_what_was_trained_on_what_and_with_which_settings(page: str) -> None:
    text = Outline(page).text
    assert "trained by pretrain on OUMVLP (3 steps), then finetune on CASIA-E (3 steps);" in text
    assert "data OUMVLP CASIA-E" in text
    assert "weights from random, seed 0 pretrain" in text
    assert "clips seen 96 96" in text
    assert "clips seen per sequence 1.6 1.6" in text
    assert "p at the end 6.000 6.000" in text
    assert "lr_drops [2]" in text
    assert f"checkpoint of finetune {'a' * 64}" in text
    assert f"embeddings {'e' * 64} protocols {'f' * 64} commit of the code c0ffee" in text


def test_the_page_names_the_distance_that_its_numbers_are(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    cos = (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
    (apart,) = pair_distances(np.stack([a, b]), np.array([0]), np.array([1]), "cosine")
    assert apart == pytest.approx(np.sqrt(2 - 2 * cos), rel=1e-5)
    monkeypatch.setitem(SETTINGS, "distance", "cosine")
    text = Outline(case.write(tmp_path)).text
    assert "compared by the Euclidean distance of flattened embeddings scaled to length 1" in text
    assert "√(2 - 2 cos)" in text


def test_each_confusion_is_on_the_page_with_keys_and_distances(page: str, case: Case) -> None:
    text = Outline(page).text
    worst = case.evaluation.results[0].confusions
    assert len(worst) > 5
    for row in worst.to_dict("records"):
        for who in ("probe", "wrong", "right"):
            assert (
                "subject {}, sequence {}, view {}".format(*(row[f"{who}_{part}"] for part in KEY))
                in text
            )
        assert f"distance {row['wrong_distance']:.4g}" in text


def test_what_a_confusion_is_compared_with_is_said_of_either_gallery(
    page: str, case: Case, tmp_path: Path
) -> None:
    pairs, together = case.evaluation.results
    assert (pairs.confusions["wrong_view"] == pairs.confusions["right_view"]).all()
    assert (together.confusions["wrong_view"] != together.confusions["right_view"]).any()
    words = "compared with their own subject's nearest entry"
    assert f"in the gallery of one view, {words} at that view." in Outline(page).text
    evaluation = replace(case.evaluation, results=[together])
    other = replace(case, protocols=case.protocols[1:], evaluation=evaluation).write(tmp_path)
    assert f"All views as one gallery: the probes that lie nearest to somebody else, {words}." in (
        Outline(other).text
    )


def test_every_figure_is_a_file_too_and_on_the_page(page: str, folder: Path) -> None:
    names = {path.stem for path in (folder / "figures").iterdir()}
    assert names == {
        *("rank1_nm", "rank1_bg", "rank1_cl", "cmc", "all_views_cmc", "all_views_det"),
        *("loss_pretrain", "loss_finetune", "p_pretrain", "p_finetune", "embeddings"),
    }
    for path in (folder / "figures").iterdir():
        picture = cv2.imread(str(path))
        assert picture is not None
        assert picture.std() > 5  # something is drawn
    worst = 3 * page.count("<figcaption><b>Probe")
    assert page.count("<img") == len(names) + worst


def test_same_inputs_same_bytes_and_nobodys_folders(
    case: Case, folder: Path, tmp_path: Path
) -> None:
    case.write(tmp_path)
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert len(paths) == 12
    for path in paths:
        content = (folder / path).read_bytes()
        assert content == (tmp_path / path).read_bytes()
        for place in (b"/home", b"/root", b"/tmp", str(Path.cwd()).encode(), b"atplotlib"):
            assert place not in content


def test_a_single_condition_has_no_name_and_a_training_may_be_none(
    case: Case, tmp_path: Path
) -> None:
    keys, embeddings = walks(("00", "01"))
    evaluation = evaluate(keys, embeddings, OumvlpRelease.protocols, Method(shown=False), 20)
    results = [replace(r, confusions=r.confusions.head(0)) for r in evaluation.results]
    evaluation = replace(evaluation, results=results)
    untrained = replace(PRETRAIN, history=HISTORY.head(0), settings={**TRAINING, "steps": 0})
    small = replace(
        case,
        keys=keys,
        embeddings=embeddings,
        protocols=OumvlpRelease.protocols,
        evaluation=evaluation,
        records=(untrained,),
    )
    text = Outline(small.write(tmp_path)).text
    rank1 = evaluation.results[0].estimates["all"]["rank1"]
    assert f"View pairs Rank-1 {rank1.value:.1f} %" in text
    assert "Rank-1, all" not in text
    assert "Confusions" not in text
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {
        *("rank1_all", "cmc", "all_views_cmc", "all_views_det", "embeddings"),
    }


def test_a_competition_has_a_submission_instead_of_figures(case: Case, tmp_path: Path) -> None:
    keys, embeddings = walks(("gallery-ab", "probe"), views=("any",))
    table = pd.DataFrame({"video": ["00001", "00002"], "subject": ["501", "501"]})
    competition = replace(
        case,
        keys=keys,
        embeddings=embeddings,
        protocols=Hid.protocols,
        evaluation=Evaluation([], table, ["One had to be guessed."]),
    )
    page = competition.write(tmp_path)
    text = Outline(page).text
    assert "HID" in text
    assert "submission.csv names somebody for each of 2 probe videos: 1 subject in all" in text
    assert "One had to be guessed." in text
    assert Hid.protocols[0].rules()[0] in text
    probes = int((keys["sequence"] == "probe").sum())
    assert f"a colour for each subject; {probes} in grey: probes" in page
    assert "95 %" not in text


def test_a_browser_shows_every_picture_on_a_phone_and_on_a_desk_and_prints(
    browser: "Browser", folder: Path, page: str
) -> None:
    pictures = page.count("<img")
    url = (folder / "index.html").as_uri()
    for width, scheme in ((360, "dark"), (1_200, "light")):
        with opened(browser, url, width, color_scheme=scheme) as shown:
            assert shown.locator("img").count() == pictures
            assert not broken_pictures(shown)
            assert sideways(shown) <= 0
            ground = shown.evaluate("getComputedStyle(document.documentElement).backgroundColor")
            assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
    with opened(browser, url) as shown:
        pdf = shown.pdf(format="A4")
    assert pdf.startswith(b"%PDF-")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 20


@pytest.mark.parametrize("width", [320, 390, 820, 1_280, 1_920])
def test_nothing_sticks_out_of_headlines_tables_settings_and_the_map(
    browser: "Browser", folder: Path, width: int
) -> None:
    with opened(browser, (folder / "index.html").as_uri(), width) as shown:
        inside = ".settings .scroll, .headlines .figures div, section:has(#embeddings) .scroll"
        tables = ", .beside .scroll" if width >= 820 else ""  # on a phone, they scroll
        boxes = shown.locator(inside + tables)
        assert boxes.count() >= 10
        assert boxes.evaluate_all("all => all.map(e => e.scrollWidth - e.clientWidth)") == (
            [0] * boxes.count()
        )
        # a number and its % stay on one line, the interval is on the next
        lines = "all => all.map(e => e.offsetHeight / parseFloat(getComputedStyle(e).lineHeight))"
        assert max(shown.locator(".headlines dd").evaluate_all(lines)) < 2


def test_numbers_of_the_heat_maps_can_be_opened(
    browser: "Browser", folder: Path, case: Case
) -> None:
    table = case.evaluation.results[0].rank1["NM"]
    with opened(browser, (folder / "index.html").as_uri(), 360) as shown:
        shown.get_by_text("Numbers of the heat map, NM").click()
        cells = shown.locator("details[open] td").all_inner_texts()
        assert cells == [f"{value:.1f}" for value in table.ravel()]
        assert sideways(shown) <= 0


def test_a_condition_without_pairs_of_views_is_missing_from_the_headline_alone(
    tmp_path: Path, case: Case
) -> None:
    seen = (case.keys["view"] == "000") | (
        (case.keys["view"] == "090") & (case.keys["sequence"] == SEQUENCES[-1])
    )
    keys, embeddings = case.keys[seen].reset_index(drop=True), case.embeddings[seen.to_numpy()]
    evaluation = evaluate(keys, embeddings, CASIA_E[:1], Method(shown=False), 20)
    assert [c for c, found in evaluation.results[0].estimates.items() if "rank1" in found] == ["CL"]
    shown = replace(case, keys=keys, embeddings=embeddings, evaluation=evaluation)
    page = replace(shown, protocols=CASIA_E[:1]).write(tmp_path)
    headlines = page[page.index('<div class="headlines">') :].partition("</dl>")[0]
    assert "Rank-1, CL" in headlines
    assert "Rank-1, NM" not in headlines
