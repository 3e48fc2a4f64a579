import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from pipeline.run_record import (
    FAILED,
    FINISHED,
    DataInput,
    End,
    Point,
    Record,
    RecordInUse,
    Run,
    new_record,
    open_record,
    remove_folder,
    start_ms,
)

PROJECT = Path(__file__).parents[2]
RUN = Run(
    token="0123456789abcdef",
    stage="pretrain",
    dataset="oumvlp",
    experiment="walks",
    name="pretrain-oumvlp",
    start_ms=1_700_000_000_000,
    params={"seed": "0"},
    upstream={"pretrain": "abc"},
    resumable=True,
    inputs=[DataInput("oumvlp", "f00d", "data", {"train": {"subjects": 3}}, "training")],
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "pretrain-f00d" / "record"


@pytest.fixture
def record(folder: Path) -> Record:
    return new_record(folder, RUN, {"stage": "pretrain"})


def again(record: Record) -> Record:
    """The record as the next process finds it."""
    record.release()
    opened = open_record(record.folder)
    assert opened is not None
    return opened


def lines(record: Record) -> list[Any]:
    text = (record.folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def steps(record: Record) -> list[int]:
    return [step for _, _, _, step in lines(record)]


def test_all_that_is_kept_is_found_again(record: Record, tmp_path: Path) -> None:
    record.add(1, {"loss": 0.5})
    record.tag({"device": "cpu"})
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "p.png").write_bytes(b"picture")
    record.add_artifact(tmp_path / "figures")
    record.acknowledge(run_id="f00d", tags={"device": "cpu"}, end_begun=True, end=End(FAILED, 5))
    record.finish(FAILED)
    opened = again(record)
    assert opened.run == RUN
    assert opened.tags == {"stage": "pretrain", "device": "cpu"}
    assert opened.sent == record.sent
    assert opened.end == record.end
    assert opened.kept == record.kept == (record.folder / "metrics.jsonl").stat().st_size
    (artifact,) = opened.unsent_artifacts()
    assert (artifact.file.read_bytes(), artifact.folder) == (b"picture", "figures")
    assert start_ms(record.folder) == RUN.start_ms
    opened.reopen()
    assert again(opened).end is None


def test_points_are_on_the_disk_after_keep_and_not_before(record: Record) -> None:
    record.add(1, {"loss": 0.5, "p": 6.5})
    assert record.kept == 0
    assert lines(record) == []
    record.keep()
    assert [(name, value, step) for name, value, _, step in lines(record)] == [
        ("loss", 0.5, 1),
        ("p", 6.5, 1),
    ]
    record.keep()
    assert len(lines(record)) == 2


def test_steps_that_a_name_has_had_are_dropped(record: Record) -> None:
    for step in (1, 2, 2, 3):
        record.add(step, {"loss": float(step)})
    record.keep()
    opened = again(record)
    for step in (2, 3, 4):
        opened.add(step, {"loss": -1.0, "only now": 0.0})
    opened.keep()
    assert [(name, step) for name, _, _, step in lines(opened)] == [
        ("loss", 1),
        ("loss", 2),
        ("loss", 3),
        ("only now", 2),
        ("only now", 3),
        ("loss", 4),
        ("only now", 4),
    ]


def test_points_that_are_no_numbers_survive(record: Record) -> None:
    record.add(1, {"loss": math.nan, "up": math.inf, "down": -math.inf})
    record.keep()
    points, end = again(record).unsent_points(10)
    assert math.isnan(points[0].value)
    assert [point.value for point in points[1:]] == [math.inf, -math.inf]
    assert end == record.kept


@pytest.mark.parametrize("torn", [b'["loss", 0.5, 17', b'["loss", 0.5, 17, 4]', b"\0" * 80, b"7\n"])
def test_a_torn_end_is_cut_off(record: Record, torn: bytes) -> None:
    record.add(1, {"loss": 0.5})
    record.keep()
    with (record.folder / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    opened = again(record)
    assert opened.kept == record.kept
    opened.add(4, {"loss": 0.25})
    opened.keep()
    assert steps(opened) == [1, 4]


def test_half_a_write_that_failed_is_written_again_whole(record: Record) -> None:
    record.add(1, {"loss": 0.5})
    record.keep()
    metrics = record.folder / "metrics.jsonl"
    with metrics.open("ab") as file:
        file.write(b'["loss", 0.2')  # the disk was full
    record.add(2, {"loss": 0.25})
    record.keep()
    assert steps(record) == [1, 2]
    metrics.rename(metrics.with_suffix(".aside"))
    record.add(3, {"loss": 0.125})
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        record.keep()
    metrics.with_suffix(".aside").rename(metrics)
    record.keep()
    assert steps(record) == [1, 2, 3]


def test_points_that_the_disk_lost_after_they_were_sent_leave_no_hole(record: Record) -> None:
    record.add(1, {"loss": 0.5})
    record.keep()
    record.add(2, {"loss": 0.25})
    one = record.kept
    record.keep()
    record.acknowledge(metrics=record.kept)
    with (record.folder / "metrics.jsonl").open("r+b") as file:
        file.truncate(one + 5)
    opened = again(record)
    assert opened.sent.metrics == opened.kept == one
    opened.add(2, {"loss": 0.25})
    opened.keep()
    assert [point.step for point in opened.unsent_points(10)[0]] == [2]


def test_unsent_points_come_in_order_and_in_batches(record: Record) -> None:
    for step in range(1, 8):
        record.add(step, {"loss": step / 2})
    record.keep()
    record.add(8, {"loss": 4.0})  # not kept: not to be sent
    assert record.count_unsent() == 7
    seen: list[Point] = []
    while record.sent.metrics < record.kept:
        points, end = record.unsent_points(3)
        seen += points
        record.acknowledge(metrics=end)
    assert [(point.step, point.value) for point in seen] == [(s, s / 2) for s in range(1, 8)]
    assert record.count_unsent() == 0
    assert record.unsent_points(3) == ([], record.kept)


def test_artifacts_are_copies_in_the_order_given(record: Record, tmp_path: Path) -> None:
    tables = tmp_path / "tables"
    (tables / "ranks").mkdir(parents=True)
    (tables / "summary.csv").write_text("1")
    (tables / "ranks" / "b.csv").write_text("2")
    record.add_artifact(tables)
    record.add_artifact(tables / "summary.csv")
    (tables / "summary.csv").write_text("3")
    (record.folder / "copying").mkdir()  # of a process that was killed
    opened = again(record)
    opened.add_artifact(tables / "summary.csv")
    found = [
        (item.folder, item.file.name, item.file.read_text()) for item in opened.unsent_artifacts()
    ]
    assert found == [
        ("tables/ranks", "b.csv", "2"),
        ("tables", "summary.csv", "1"),
        (None, "summary.csv", "1"),
        (None, "summary.csv", "3"),
    ]
    with pytest.raises(FileNotFoundError, match="absent"):
        opened.add_artifact(tmp_path / "absent")


def test_a_record_is_delivered_when_nothing_is_left(record: Record, tmp_path: Path) -> None:
    def sends(**changes: Any) -> None:
        assert not record.delivered()
        record.acknowledge(**changes)

    sends(run_id="f00d")
    sends(params=1)
    sends(inputs=True)
    sends(tags={"stage": "pretrain", "record": "token"})
    assert record.delivered()
    record.add(1, {"loss": 0.5})
    record.keep()
    sends(metrics=record.kept)
    assert record.delivered()
    (tmp_path / "file").touch()
    record.add_artifact(tmp_path / "file")
    assert not record.delivered()
    next(record.unsent_artifacts()).file.unlink()
    record.finish(FINISHED, 17)
    sends(end=End(FINISHED, 17))
    assert record.delivered()


def test_a_run_is_over_when_it_cannot_go_on(record: Record, tmp_path: Path) -> None:
    assert not record.over()
    record.finish(FAILED)
    assert not record.over()
    record.finish(FINISHED)
    assert record.over()
    once = new_record(tmp_path / "once", replace(RUN, resumable=False), {})
    once.finish(FAILED)
    assert once.over()


def test_a_record_in_use_is_named(record: Record) -> None:
    folder = record.folder
    command = [
        sys.executable,
        "-c",
        "import sys; from pathlib import Path; from pipeline.run_record import open_record\n"
        "open_record(Path(sys.argv[1]))",
        str(folder),
    ]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert f"RecordInUse: {folder} is the record of a run that another" in result.stderr
    with pytest.raises(RecordInUse):
        open_record(folder)
    record.release()
    assert subprocess.run(command, cwd=PROJECT).returncode == 0


def test_what_was_not_begun_or_half_removed_is_no_record(record: Record, folder: Path) -> None:
    assert open_record(folder.parent / "absent") is None
    record.add(1, {"loss": 0.5})
    record.finish(FINISHED)
    (folder / "artifacts").mkdir()
    (folder / "run.json").unlink()
    record.release()
    assert open_record(folder) is None
    assert start_ms(folder) == 0
    new = new_record(folder, RUN, {})
    assert (new.kept, new.end, new.count_unsent()) == (0, None, 0)


def test_a_record_moves_aside_and_its_name_is_free(record: Record, folder: Path) -> None:
    (folder.parent / "checkpoint").touch()
    aside = record.move_aside()
    assert aside == folder.parent.with_name("pretrain-f00d-01234567") / "record"
    new = new_record(folder, RUN, {})
    moved = open_record(aside)
    assert moved is not None
    assert moved.run == RUN
    remove_folder(aside)
    remove_folder(new.folder)
    assert [path.name for path in folder.parent.parent.iterdir()] == ["pretrain-f00d"]
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]


def test_a_model_takes_the_place_of_one_added_before_and_waits_to_be_sent(
    record: Record, tmp_path: Path
) -> None:
    assert record.unsent_model() is None
    for content in ("first", "second"):
        folder = tmp_path / content
        (folder / "code").mkdir(parents=True)
        (folder / "MLmodel").write_text(content, encoding="utf-8")
        (folder / "code" / f"{content}.py").touch()
        record.add_model(folder)
    model = again(record).unsent_model()
    assert model is not None
    assert (model / "MLmodel").read_text(encoding="utf-8") == "second"
    assert [path.name for path in (model / "code").iterdir()] == ["second.py"]


def test_points_may_be_added_by_several_threads_while_one_keeps_them(record: Record) -> None:
    def add(name: str) -> None:
        for step in range(2000):
            record.add(step, {name: step / 8})

    threads = [Thread(target=add, args=(name,)) for name in ("loss", "system/cpu")]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        record.keep()
    record.keep()
    for name in ("loss", "system/cpu"):
        assert [step for n, _, _, step in lines(record) if n == name] == list(range(2000))
    assert record.kept == (record.folder / "metrics.jsonl").stat().st_size
