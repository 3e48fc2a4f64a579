"""From a release, untouched, to the catalogue of its sequences and its refusals."""

from functools import partial
from pathlib import Path

import pandas as pd

from pipeline import releases
from pipeline.archives import Caps, DamagedArchiveError, WrongPasswordError
from pipeline.catalogue import SEQUENCES, by_reason, refusal_table
from pipeline.errors import PipelineError, listing
from pipeline.processes import map_in_order, report
from pipeline.progress import Progress
from pipeline.protocols import PROTOCOLS
from pipeline.releases import Found, Refusal, Scan
from pipeline.settings import Dataset


def ingest(
    dataset: Dataset, root: Path, split: str, workers: int, caps: Caps | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Catalogue and refusals of the release below ``root`` (columns: pipeline.catalogue).

    Raises PipelineError where the root, an archive or the sequences found cannot serve; archives
    that cannot be opened are all named at once.
    """
    names, refused = releases.containers(dataset, root)
    scans = _scan_all(dataset, root, names, workers, caps)
    seen = sum(scan.seen for scan in scans) + sum(refusal.frames for refusal in refused)
    refused += [refusal for scan in scans for refusal in scan.refused]
    found, repeated = _without_repeats([found for scan in scans for found in scan.found])
    refused += repeated
    if not found:
        raise releases.nothing_found(dataset, root, refused)
    layouts = sorted({layout for scan in scans for layout in scan.layouts})
    if len(layouts) > 1:
        raise PipelineError(
            f"data.{dataset}.root = {root}: more than one layout in one folder:\n"
            f"{listing(layouts)}\nMove one of them elsewhere: a sequence must be there once."
        )
    rows = [_row(dataset, item, split) for item in sorted(found, key=lambda f: f.key)]
    sequences = pd.DataFrame(rows, columns=SEQUENCES.names)
    refusals = refusal_table(dataset, refused)
    _account(seen, sequences, refusals)
    print(f"{dataset}: {layouts[0]}, {len(names)} containers below {root}")
    _report(dataset, seen, sequences, refusals)
    check_protocol(dataset, sequences)
    return sequences, refusals


def check_protocol(dataset: Dataset, sequences: pd.DataFrame) -> None:
    """PipelineError unless there are subjects to train on, and probes that have a gallery.

    Test subjects without any gallery sequence are printed: they can never be recognized.
    """
    protocol = PROTOCOLS[dataset]
    test = sequences[
        (sequences["split"] == "test") & protocol.compares(sequences["sequence"], sequences["view"])
    ]
    gallery = set(test.loc[test["sequence"].isin(protocol.gallery), "subject"])
    probe = set(test.loc[test["sequence"].isin(protocol.all_probes), "subject"])
    problems = []
    if not (sequences["split"] == "train").any():
        problems.append("no subject to train on")
    if not gallery:
        problems.append(f"no test subject has a gallery sequence ({', '.join(protocol.gallery)})")
    if not probe:
        problems.append(f"no test subject has a probe sequence ({protocol.probe_words})")
    if problems:
        held = sorted(set(sequences.loc[sequences["split"] == "test", "sequence"]))[:8]
        raise PipelineError(
            f"{dataset} cannot be evaluated: {'; '.join(problems)}.\n"
            f"Found test sequences named "
            f"{', '.join(held) or 'none'}.\nIs the release complete, and data.{dataset} right?"
        )
    without = sorted(probe - gallery)
    if without:
        print(
            f"{dataset}: {len(without)} test subject(s) have probes but no gallery sequence, "
            f"so no probe of theirs can match:\n{listing(without)}"
        )


def _scan_all(
    dataset: Dataset, root: Path, names: list[str], workers: int, caps: Caps | None
) -> list[Scan]:
    scans: list[Scan] = []
    broken: list[DamagedArchiveError] = []
    work = partial(_scan_or_damage, dataset, root, caps)
    with Progress(f"{dataset}: listing", len(names), "containers") as progress:
        for outcome in map_in_order(work, names, workers, progress.advance):
            if isinstance(outcome, Scan):
                scans.append(outcome)
            else:
                broken.append(outcome)
    if broken:
        advice = "Download them again, or compare their checksums with the owners'."
        if any(isinstance(error, WrongPasswordError) for error in broken):
            advice = releases.password_advice(dataset)
        raise PipelineError(
            f"data.{dataset}.root = {root}: {len(broken)} archive(s) cannot be read:\n"
            f"{listing([str(error) for error in broken])}\n{advice}"
        )
    return scans


def _scan_or_damage(
    dataset: Dataset, root: Path, caps: Caps | None, container: str
) -> Scan | DamagedArchiveError:
    try:
        return releases.scan(dataset, root, container, caps)
    except DamagedArchiveError as error:
        return error
    finally:
        report(1)


def _without_repeats(found: list[Found]) -> tuple[list[Found], list[Refusal]]:
    """A sequence found twice is kept where it was found first."""
    first: dict[tuple[str, str, str], Found] = {}
    repeated = []
    for item in found:
        if (kept := first.setdefault(item.key, item)) is not item:
            repeated.append(
                Refusal(
                    item.container,
                    item.folder,
                    "the sequence is there twice",
                    f"kept: {kept.container} {kept.folder}",
                    len(item.frames),
                    *item.key,
                )
            )
    return list(first.values()), repeated


def _row(dataset: Dataset, item: Found, split: str) -> dict[str, object]:
    return {
        "dataset": dataset,
        "subject": item.subject,
        "sequence": item.sequence,
        "view": item.view,
        "split": releases.split_of(dataset, item.subject, split),
        "container": item.container,
        "folder": item.folder,
        "frames": item.frames,
        "n_frames": len(item.frames),
        "bytes": item.bytes,
    }


def _account(seen: int, sequences: pd.DataFrame, refusals: pd.DataFrame) -> None:
    kept, refused = int(sequences["n_frames"].sum()), int(refusals["frames"].sum())
    if seen != kept + refused:
        raise PipelineError(
            f"files seen ({seen}) are not frames catalogued ({kept}) + refused ({refused}). "
            "This is a fault of the pipeline: please report it with this line."
        )


def _report(dataset: Dataset, seen: int, sequences: pd.DataFrame, refusals: pd.DataFrame) -> None:
    for part, rows in sequences.groupby("split"):
        print(
            f"{dataset}: {part}: {rows['subject'].nunique()} subjects, {len(rows)} sequences, "
            f"{rows['view'].nunique()} views, {rows['n_frames'].sum()} frames"
        )
    print(
        f"{dataset}: files seen {seen} = frames catalogued {sequences['n_frames'].sum()} "
        f"+ refused {refusals['frames'].sum()}; refusals: {by_reason(refusals)}"
    )
