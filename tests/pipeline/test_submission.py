"""A line for every probe video, and a validator that tells all problems at once."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.catalogue import write_catalogue
from pipeline.errors import PipelineError
from pipeline.ingestion import ingest
from pipeline.layouts.casia_b import CasiaB
from pipeline.layouts.hid import Hid
from pipeline.protocols import write_protocols
from pipeline.submission import (
    COLUMNS,
    Nearest,
    check,
    competition,
    gallery_subjects,
    main,
    probe_videos,
    problems,
    submission,
    write_submission,
)

VIDEOS = ["00001", "00002", "00003"]
GALLERY = ["501", "502"]


@pytest.fixture
def catalogue(tmp_path: Path, write_tree: Callable[[Path, dict[str, bytes]], None]) -> Path:
    """Of a competition with seven probe folders, of which three hold frames."""
    root = tmp_path / "hid"
    walks = ["train/001/aa", "train/002/bb", "test_gallery/502/dd", "test_gallery/501/cc"]
    walks += [f"test_probe/{video}" for video in VIDEOS]
    files = {f"{walk}/{i:03}.jpg": b"x" for walk in walks for i in (1, 2)}
    files |= {
        "test_probe/00005/Thumbs.db": b"x",
        "test_probe/00006/masks/001.jpg": b"x",  # too deep
        "test_gallery/503/readme.txt": b"x",  # nobody can be taken for 503
    }
    write_tree(root, files)
    (root / "test_probe/00004").mkdir()
    (root / "test_probe/00007/masks").mkdir(parents=True)
    made = ingest("casia_e", root, "release", workers=0)
    folder = tmp_path / "catalogue"
    folder.mkdir()
    write_catalogue(folder, made.sequences, made.refusals, made.release)
    write_protocols(folder, made.protocols)
    return folder


def test_every_probe_folder_is_a_video_with_frames_or_without(catalogue: Path) -> None:
    (protocol,) = Hid.protocols
    assert probe_videos(catalogue, protocol) == [f"{i:05}" for i in range(1, 8)]
    assert gallery_subjects(catalogue, protocol) == GALLERY


def test_a_video_is_taken_for_the_nearest_subject() -> None:
    nearest = Nearest(["00002", "00001", "00003"], ["501", "502", "501"], [1.0, 2.0, 3.0])
    made = submission(nearest, VIDEOS, GALLERY, unknown_above=0)
    assert made.table.to_dict("list") == {
        "video": VIDEOS,
        "subject": ["502", "501", "501"],
        "how": ["nearest"] * 3,
        "distance": [2.0, 1.0, 3.0],
    }
    assert made.notes == []


def test_a_video_without_frames_is_taken_for_the_first_of_the_gallery_and_counted() -> None:
    made = submission(Nearest(["00002"], ["502"], [1.0]), VIDEOS, GALLERY, unknown_above=0)
    assert made.table["subject"].tolist() == ["501", "502", "501"]
    (note,) = made.notes
    assert note == (
        "2 of 3 probes have no embedding, for too few of their frames are usable "
        "(normalize.min_frames); taken for the first subject of the gallery (501): 00001, 00003."
    )


def test_of_many_videos_without_frames_the_first_ten_are_named() -> None:
    videos = [f"{i:05}" for i in range(12)]
    (note,) = submission(Nearest(["z"], ["501"], [1.0]), [*videos, "z"], GALLERY, 0).notes
    assert note.startswith("12 of 13 probes have no embedding")
    assert note.endswith(f"(501): {', '.join(videos[:10])} ....")


def test_where_unknown_people_are_scored_the_far_and_the_empty_are_nobody() -> None:
    nearest = Nearest(["00001", "00002"], ["501", "502"], [2.0, 2.5])
    made = submission(nearest, VIDEOS, GALLERY, unknown_above=2.0)
    assert made.table["subject"].tolist() == ["501", "-1", "-1"]
    far, empty = made.notes
    assert far.startswith("1 of 2 probes with an embedding are further than 2 from everybody")
    assert empty.endswith("taken for nobody (-1): 00003.")


@pytest.mark.parametrize("columns", COLUMNS)
def test_what_is_written_is_in_order(tmp_path: Path, catalogue: Path, columns: str) -> None:
    videos = probe_videos(catalogue, Hid.protocols[0])
    made = submission(Nearest(VIDEOS, ["501", "502", "501"], [1, 1, 1]), videos, GALLERY, 0)
    path = tmp_path / "submission.csv"
    write_submission(path, made.table, columns)
    assert (
        path.read_bytes()
        == (
            f"{columns}\n00001,501\n00002,502\n00003,501\n00004,501\n00005,501\n00006,501\n00007,501\n"
        ).encode()
    )
    assert check(path, catalogue, columns, unknown=False) == 7
    other = COLUMNS[columns == COLUMNS[0]]
    with pytest.raises(PipelineError, match=f"line 1: expected {other}, got {columns}"):
        check(path, catalogue, other, unknown=False)


def test_ids_with_commas_quotes_and_other_scripts_come_through(tmp_path: Path) -> None:
    videos, people = ['a,"b"', "步 态", " c"], ["x,1", "é", "z"]
    made = submission(Nearest(videos, people, [1, 1, 1]), videos, people, 0)
    write_submission(tmp_path / "s.csv", made.table, COLUMNS[0])
    content = (tmp_path / "s.csv").read_bytes()
    assert problems(content, videos, people, COLUMNS[0], unknown=False) == []


def test_all_problems_come_at_once() -> None:
    content = b"video,label\n00001,501\n00001,502\n2,501\n00003,999\n00003,-1\n\nx,501,1\n"
    found = "\n".join(problems(content, VIDEOS, GALLERY, COLUMNS[1], unknown=False))
    for expected in (
        "line 1: expected videoID,label, got video,label",
        "2 line(s) with other than 2 fields:\n  line 7: 0\n  line 8: 3",
        "1 of 3 probe videos have no line:\n  00002",
        "2 video(s) have more than one line:\n  00001\n  00003",
        "1 line(s) name no probe video:\n  line 4: '2'",
        "ids lack zeros at their front",
        "2 line(s) name nobody of the gallery (-1 is not allowed without --unknown):\n"
        "  line 5: '999'\n  line 6:",
    ):
        assert expected in found
    found = "\n".join(problems(content, VIDEOS, GALLERY, COLUMNS[1], unknown=True))
    assert "1 line(s) name nobody of the gallery:\n  line 5: '999'" in found


def test_an_open_quote_is_told_with_its_line_however_much_follows() -> None:
    videos = [f"{i:05}" for i in range(1, 20_001)]
    lines = ["videoID,label", *(f"{video},501" for video in videos)]
    lines[1] = '00001,"501'
    lines[3] = f"00003,{'5' * 200_000}"  # longer than Python's csv takes
    found = problems("\n".join(lines).encode(), videos, GALLERY, COLUMNS[1], unknown=False)
    assert found == [
        "2 line(s) are no CSV; ids need no quotes:\n"
        "  line 2: unexpected end of data\n"
        "  line 4: field larger than field limit (131072)",
        "2 of 20000 probe videos have no line:\n  00001\n  00003",
    ]
    (first,) = problems(b'"videoID,label', [], GALLERY, COLUMNS[1], unknown=False)[:1]
    assert first == 'line 1: expected videoID,label, got "videoID,label'


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "line 1: expected videoID,label, got nothing"),
        (b"\xff\xfe", "expected UTF-8"),
    ],
)
def test_files_that_are_none(content: bytes, expected: str) -> None:
    found = problems(content, VIDEOS[:1], GALLERY, COLUMNS[1], unknown=False)
    assert expected in found[0]


def test_a_byte_order_mark_is_told_and_what_follows_is_read() -> None:
    content = b"\xef\xbb\xbfvideoID,label\n00001,501\n"
    (only,) = problems(content, VIDEOS[:1], GALLERY, COLUMNS[1], unknown=False)
    assert only.startswith("begins with a byte order mark")


def test_spaces_before_an_id_are_taken_for_a_spreadsheets() -> None:
    found = problems(b"videoID,label\n 00001,501\n", VIDEOS[:1], GALLERY, COLUMNS[1], False)
    assert "ids lack zeros at their front, or have spaces: a spreadsheet does that" in found


def test_lines_may_end_as_on_windows() -> None:
    content = b"videoID,label\r\n00001,501\r\n"
    assert problems(content, VIDEOS[:1], GALLERY, COLUMNS[1], unknown=False) == []


def test_the_validator_as_a_command(
    tmp_path: Path,
    catalogue: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "mine.csv"

    def run(*options: str) -> None:
        monkeypatch.setattr(
            sys, "argv", ["submission", "check", str(path), str(catalogue), *options]
        )
        main()

    with pytest.raises(PipelineError, match=r"mine\.csv cannot be read: No such file"):
        run()
    lines = [f"{i:05},-1" for i in range(1, 8)]
    path.write_text("\n".join(["videoID,subjectID", *lines]))
    with pytest.raises(PipelineError, match=r"mine\.csv has 2 problem\(s\):\n  line 1: ") as raised:
        run()
    assert "got videoID,subjectID (--columns videoID,subjectID, if that is" in str(raised.value)
    assert "nobody of the gallery (-1 is not allowed without --unknown)" in str(raised.value)
    run("--columns", "videoID,subjectID", "--unknown")
    assert "in order: 7 probe videos, each with one line" in capsys.readouterr().out
    command = [sys.executable, "-m", "pipeline.submission", "check", path, catalogue]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "mine.csv has 2 problem(s)" in done.stderr
    assert "Traceback" not in done.stderr


def test_data_with_labels_is_no_competition() -> None:
    with pytest.raises(PipelineError, match="no competition's: all its probes have labels"):
        competition(CasiaB.protocols, Path("catalogue"))
