"""The CSV file of a competition: a line for each probe video, with the subject it is taken for.

``evaluate`` writes it. Before a file is handed in, whatever made it:

python -m pipeline.submission check FILE CATALOGUE [--columns videoID,label] [--unknown]
"""

import argparse
import csv
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.catalogue import read_refusals, read_sequences
from pipeline.errors import PipelineError, listing, run_stage
from pipeline.files import write_bytes
from pipeline.names import printable
from pipeline.protocols import Protocol, named, read_protocols
from pipeline.tables import KEY

COLUMNS = ("videoID,subjectID", "videoID,label")
"""First lines: of 2020, and since 2022."""

UNKNOWN = "-1"


@dataclass(frozen=True)
class Nearest:
    """The nearest gallery entry of each probe that could be embedded."""

    videos: list[str]
    subjects: list[str]
    distances: list[float]


@dataclass(frozen=True)
class Submission:
    table: pd.DataFrame
    """One row per probe video, sorted: video, subject, how (``nearest``, ``too far`` or ``no
    frames``), distance (NaN without frames)."""

    notes: list[str]
    """What was not found by distance, counted, in sentences."""


def probe_videos(folder: Path, protocol: Protocol) -> list[str]:
    """All probe videos of a release, sorted: also those whose folder is empty, or of which no
    frame could be read.

    ``folder``: of the catalogue.
    """
    names = ["subject", "sequence"]
    listed = read_sequences(folder, [*KEY, "split"])
    listed = listed.loc[listed["split"] == "test", names]
    # what ingest refused has the key of its place, where that is a probe's
    rows = pd.concat([listed, read_refusals(folder)[names]])
    return sorted(set(rows.loc[_named(protocol.all_probes, rows), "subject"]))


def gallery_subjects(folder: Path, protocol: Protocol) -> list[str]:
    """Whom a probe can be taken for: everybody in the release's gallery, sorted."""
    rows = read_sequences(folder, [*KEY, "split"])
    rows = rows[rows["split"] == "test"]
    return sorted(set(rows.loc[_named(protocol.gallery, rows), "subject"]))


def submission(
    nearest: Nearest, videos: Iterable[str], gallery: list[str], unknown_above: float
) -> Submission:
    """A subject for every video of ``videos``.

    A video that could not be embedded has no nearest entry. It is taken for the first subject of
    ``gallery``, or for nobody (-1) where ``unknown_above`` is more than 0; then so is each video
    whose nearest entry is further than that.
    """
    near = pd.DataFrame(
        {
            "video": nearest.videos,
            "subject": nearest.subjects,
            "how": "nearest",
            "distance": nearest.distances,
        }
    )
    every = pd.DataFrame({"video": sorted(set(videos))})
    table = every.merge(near, "left", "video", validate="one_to_one")
    notes = []
    if unknown_above:
        far = table["distance"] > unknown_above
        table.loc[far, ["subject", "how"]] = UNKNOWN, "too far"
        notes.append(
            f"{far.sum()} of {len(near)} probes with an embedding are further than "
            f"{unknown_above:g} from everybody: labelled {UNKNOWN}."
        )
    without = table["how"].isna()
    if without.any():
        instead = UNKNOWN if unknown_above else gallery[0]
        table.loc[without, ["subject", "how"]] = instead, "no frames"
        whom = "nobody" if unknown_above else "the first subject of the gallery"
        videos = table.loc[without, "video"].tolist()
        notes.append(
            f"{len(videos)} of {len(table)} probes have no embedding, for too few of their frames "
            f"are usable (normalize.min_frames); taken for {whom} ({instead}): "
            f"{', '.join(videos[:10])}{' ...' if len(videos) > 10 else ''}."
        )
    return Submission(table, notes)


def write_submission(path: Path, table: pd.DataFrame, columns: str) -> None:
    """``table`` (video, subject) as CSV under the year's ``columns``; ids as the owners write
    them."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns.split(","))
    writer.writerows(table[["video", "subject"]].itertuples(index=False))
    write_bytes(path, text.getvalue().encode())


def problems(
    content: bytes, videos: Iterable[str], subjects: Iterable[str], columns: str, unknown: bool
) -> list[str]:
    """All that is wrong with a submission, in sentences; empty if it can be handed in.

    Args:
        content: of the file.
        videos: all probe videos; each needs exactly one line.
        subjects: whom they may be taken for.
        columns: the year's first line.
        unknown: whether the year allows the label -1.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        return [f"expected UTF-8, got {error}"]
    found = []
    if text.startswith("\ufeff"):
        found.append("begins with a byte order mark, which becomes part of the first column's name")
        text = text.removeprefix("\ufeff")
    lines: list[list[str]] = []
    broken: dict[int, str] = {}
    # each line for itself: a quote that nobody closed would take all that follow it into one field
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        try:
            (fields,) = csv.reader([line], strict=True)
        except csv.Error as error:
            fields, broken[number] = [line.rstrip("\n")], str(error)
        lines.append(fields)
    if not lines or lines[0] != columns.split(","):
        got = printable(",".join(lines[0])) if lines else "nothing"
        other = f" (--columns {got}, if that is this year's)" if got in COLUMNS else ""
        found.append(f"line 1: expected {columns}, got {got}{other}")
    rows: list[tuple[int, str, str]] = []
    torn = []
    for number, fields in enumerate(lines[1:], start=2):
        if len(fields) == 2:
            rows.append((number, fields[0], fields[1]))
        elif number not in broken:
            torn.append(f"line {number}: {len(fields)}")
    found += _told(
        "line(s) are no CSV; ids need no quotes",
        [f"line {number}: {why}" for number, why in broken.items()],
    )
    found += _told("line(s) with other than 2 fields", torn)
    expected, allowed = set(videos), set(subjects) | ({UNKNOWN} if unknown else set())
    counts = Counter(video for _, video, _ in rows)
    absent = sorted(expected - set(counts))
    strange = [f"line {n}: {video!r}" for n, video, _ in rows if video not in expected]
    found += _told(f"of {len(expected)} probe videos have no line", absent)
    found += _told(
        "video(s) have more than one line", sorted(v for v, n in counts.items() if n > 1)
    )
    found += _told("line(s) name no probe video", strange)
    if absent and strange and {_bare(v) for v in absent} & {_bare(v) for v in counts}:
        found.append("ids lack zeros at their front, or have spaces: a spreadsheet does that")
    without = "" if unknown else f" ({UNKNOWN} is not allowed without --unknown)"
    found += _told(
        f"line(s) name nobody of the gallery{without}",
        [f"line {n}: {subject!r}" for n, _, subject in rows if subject not in allowed],
    )
    return found


def check(path: Path, catalogue: Path, columns: str, unknown: bool) -> int:
    """Number of lines of a submission in order; PipelineError names all problems of another."""
    protocol = competition(read_protocols(catalogue), catalogue)
    videos = probe_videos(catalogue, protocol)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PipelineError(f"{path} cannot be read: {error.strerror}") from None
    found = problems(content, videos, gallery_subjects(catalogue, protocol), columns, unknown)
    if found:
        lines = "\n".join(f"  {problem}" for problem in found)
        raise PipelineError(f"{path} has {len(found)} problem(s):\n{lines}")
    return len(videos)


def competition(protocols: Iterable[Protocol], catalogue: Path) -> Protocol:
    """The protocol whose probes have no labels; PipelineError where there is none."""
    for protocol in protocols:
        if not protocol.labelled:
            return protocol
    raise PipelineError(f"{catalogue}: this data is no competition's: all its probes have labels")


def _named(names: Iterable[str], rows: pd.DataFrame) -> "pd.Series[bool]":
    return rows["sequence"].isin(named(names, rows["sequence"]))


def _bare(video: str) -> str:
    return video.strip().lstrip("0")


def _told(what: str, items: list[str]) -> list[str]:
    return [f"{len(items)} {what}:\n{listing(items, 5)}"] if items else []


def main() -> None:
    about = "Is a submission as the organizers want it: each probe video once, known subjects only?"
    parser = argparse.ArgumentParser("python -m pipeline.submission", description=about)
    parser.add_argument("command", choices=["check"])
    parser.add_argument("file", type=Path, help="submission.csv")
    parser.add_argument("catalogue", type=Path, help="such as data/casia_e/catalogue")
    lines = " or ".join(COLUMNS)
    parser.add_argument(
        "--columns",
        choices=COLUMNS,
        default=COLUMNS[1],
        metavar="LINE",
        help=f"its first line, which changes with the years: {lines} (default: %(default)s)",
    )
    parser.add_argument("--unknown", action="store_true", help="the year allows the label -1")
    given = parser.parse_args()
    count = check(given.file, given.catalogue, given.columns, given.unknown)
    print(f"{given.file}: in order: {count} probe videos, each with one line")


if __name__ == "__main__":
    run_stage(main)
