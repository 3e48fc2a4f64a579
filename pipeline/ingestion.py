"""From a release, untouched, to the catalogue of its sequences and its refusals."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pandas as pd

from pipeline import releases
from pipeline.archives import Caps, DamagedArchiveError, escaped, is_packed
from pipeline.catalogue import DAMAGED, SEQUENCES, Refusal, Release, by_reason, refusal_table
from pipeline.errors import PipelineError, listing
from pipeline.layouts import LAYOUTS, recognize, recognize_own
from pipeline.layouts.generic import Generic
from pipeline.layouts.layout import Key, Layout
from pipeline.processes import map_in_order, report
from pipeline.progress import Progress
from pipeline.protocols import Protocol, named
from pipeline.releases import Found, Scan
from pipeline.settings import Dataset

STRAY = "not in the layout of the rest"


class Catalogue(NamedTuple):
    """What is known of a release without looking at a picture."""

    sequences: pd.DataFrame
    """Columns of pipeline.catalogue.SEQUENCES, sorted by key."""

    refusals: pd.DataFrame
    """Columns of pipeline.catalogue.REFUSALS."""

    release: Release
    protocols: tuple[Protocol, ...]


def ingest(
    dataset: Dataset, root: Path, split: str, workers: int, caps: Caps | None = None
) -> Catalogue:
    """Catalogue of the release below ``root``, whichever layout it has.

    Raises PipelineError where the root, an archive or the sequences found cannot serve; archives
    that cannot be opened are all named at once.
    """
    names, refused, empty = releases.containers(dataset, root)
    scans = _scan_all(dataset, root, names, workers, caps)
    seen = sum(scan.seen for scan in scans) + sum(refusal.frames for refusal in refused)
    refused += [refusal for scan in scans for refusal in scan.refused]
    found = [found for scan in scans for found in scan.found]
    recognized = _layout(dataset, root, found, refused)
    found, strays = _without_strays(dataset, recognized, found)
    found, repeated = _without_repeats(found)
    keys = {item.key for item in found}
    empty_folders = [(folder, "") for folder in empty]
    for name, scan in zip(names, scans, strict=True):
        empty_folders += [(name, folder) for folder in scan.empty]
    refused = [
        *(_with_key(recognized, refusal) for refusal in refused + strays),
        *repeated,
        *_empty_places(recognized, empty_folders, keys),
    ]
    layout = recognized(root, keys, split)
    rows = [_row(dataset, item, layout) for item in sorted(found, key=lambda f: f.key)]
    sequences = pd.DataFrame(rows, columns=SEQUENCES.names)
    refusals = refusal_table(dataset, refused)
    _account(seen, sequences, refusals)
    _introduce(dataset, root, layout, len(names))
    _report(dataset, seen, sequences, refusals)
    check_protocols(dataset, sequences, layout)
    release = Release(layout.name, len(names), seen, dict(layout.expected))
    return Catalogue(sequences, refusals, release, layout.protocols)


def check_protocols(dataset: Dataset, sequences: pd.DataFrame, layout: Layout) -> None:
    """PipelineError unless there are subjects to train on, and probes that have a gallery, seen
    from views that the layout's protocols know.

    Test subjects without any gallery sequence are printed: they can never be recognized.
    """
    tested = sequences[sequences["split"] == "test"]
    problems = [] if (sequences["split"] == "train").any() else ["no subject to train on"]
    said = []
    for protocol in layout.protocols:
        compared = tested[protocol.compares(tested["sequence"], tested["view"])]
        in_gallery = compared["sequence"].isin(named(protocol.gallery, compared["sequence"]))
        gallery = set(compared.loc[in_gallery, "subject"])
        probe = set(compared.loc[~in_gallery, "subject"])
        if not gallery:
            problems.append(f"no test subject has a gallery sequence ({protocol.gallery_words})")
        if not probe:
            problems.append(f"no test subject has a probe sequence ({protocol.probe_words})")
        unknown = protocol.unknown_views(compared)
        if len(unknown):
            problems.append(
                f"{len(unknown)} test sequence(s) at views "
                f"{', '.join(sorted(set(unknown['view']))[:8])}, and {protocol.title} knows only "
                f"{', '.join(protocol.views)} (data of your own: with a {releases.DESCRIPTION})"
            )
        if not protocol.labelled:
            said.append(
                f"{dataset}: the {len(probe)} probes with frames have no labels: evaluate writes a "
                "submission"
            )
        elif without := sorted(probe - gallery):
            said.append(
                f"{dataset}: {len(without)} test subject(s) have probes but no gallery sequence, "
                f"so no probe of theirs can match:\n{listing(without)}"
            )
    if problems:
        held = sorted(set(tested["sequence"]))[:8]
        subjects = set(sequences["subject"])
        few = (
            f"\nAll of it is taken for one subject, {escaped(*subjects)}: is one of the three "
            "folders missing, <subject>/<sequence>/<view>/<frame>? One camera? Call the view any."
            if isinstance(layout, Generic) and len(subjects) == 1
            else ""
        )
        raise PipelineError(
            f"{dataset} cannot be evaluated: {'; '.join(dict.fromkeys(problems))}.\n"
            f"Found test sequences named "
            f"{', '.join(held) or 'none'}.\nIs the release complete, and data.{dataset} right?{few}"
        )
    for line in dict.fromkeys(said):
        print(line)


def _layout(
    dataset: Dataset, root: Path, found: list[Found], refused: list[Refusal]
) -> type[Layout]:
    """The one layout of all sequences found; PipelineError where there is none, or another."""
    by_layout = {
        layout: own for layout in LAYOUTS if (own := [f for f in found if f.layout == layout.name])
    }
    if not by_layout:
        raise _nothing_found(dataset, root, refused)
    if len(by_layout) > 1:
        by_layout.pop(Generic, None)  # what else has that form is strays
    where = f"data.{dataset}.root = {root}"
    if len(by_layout) > 1:
        lines = [
            f"{layout.name} ({layout.form}): {_some(own)}" for layout, own in by_layout.items()
        ]
        raise PipelineError(
            f"{where}: more than one layout in one folder:\n{listing(lines)}\n"
            "Move all but one of them elsewhere: a sequence must be there once."
        )
    (layout,) = by_layout
    if layout is Generic:
        depths: dict[int, list[Found]] = {}
        for item in found:
            depths.setdefault(_depth(item.folder), []).append(item)
        if len(depths) > 1:  # else crops/ inside a view would become views of other subjects
            lines = [f"{depth} folders deep: {_some(depths[depth])}" for depth in sorted(depths)]
            raise PipelineError(
                f"{where}: expected every frame as deep as the others, {layout.form}; found\n"
                f"{listing(lines)}\nMove what is no sequence elsewhere."
            )
    return layout


def _depth(folder: str) -> int:
    return len(PurePosixPath(folder).parts)  # which leaves ./ out


def _some(found: list[Found]) -> str:
    frames = sum(len(item.frames) for item in found)
    return f"{len(found)} sequence(s) of {frames} frame(s), such as {_path(found[0])}"


def _path(item: Found) -> str:
    inside = f"{item.folder}/{item.frames[0]}"
    return f"{item.container}: {inside}" if is_packed(item.container) else inside


def _nothing_found(dataset: Dataset, root: Path, refused: list[Refusal]) -> PipelineError:
    """The error for a root in which no layout is recognized."""
    looked_for = "\n".join(f"  {layout.name}: {layout.form}" for layout in LAYOUTS)
    examples = [
        f"{r.container}: {r.member or '(whole archive)'}: {r.reason} {r.detail}".rstrip()
        for r in refused
    ]
    suffixes = Counter(
        PurePosixPath(r.member).suffix.lower() or "none" for r in refused if r.member
    )
    counts = ", ".join(f"{suffix}: {count}" for suffix, count in suffixes.most_common(8))
    return PipelineError(
        f"data.{dataset}.root = {root}: no sequence of {dataset} in it, nor of other data.\n"
        f"Looked for these paths, in archives and in folders, with any folders before them:\n"
        f"{looked_for}\n"
        f"Found instead:\n{listing(examples, 5) or '  no file'}"
        + (f"\nFiles by suffix: {counts}" if counts else "")
        + "\nFrames of your own lie three folders deep; one camera? Call the view any."
    )


def _without_strays(
    dataset: Dataset, layout: type[Layout], found: list[Found]
) -> tuple[list[Found], list[Refusal]]:
    """What has the layout, and what only has three folders, as nearly everything."""
    strays = [
        Refusal(
            item.container,
            item.folder,
            STRAY,
            f"such as {item.frames[0]}; expected {layout.form}",
            len(item.frames),
        )
        for item in found
        if item.layout != layout.name
    ]
    if strays:
        others = [item for item in found if item.layout != layout.name]
        print(
            f"warning: {dataset}: {_some(others)}, do not fit {layout.name} and are refused. If "
            "they belong to the data, write a dataset.yaml (docs/layouts.md): then all of it is "
            "your own"
        )
    return [item for item in found if item.layout == layout.name], strays


def _with_key(layout: type[Layout], refusal: Refusal) -> Refusal:
    """A refusal with the sequence in whose place the refused member lies, if that is one."""
    if refusal.subject or not refusal.member:
        return refusal
    if not is_packed(refusal.container):
        folder = refusal.container
    elif refusal.reason == STRAY:
        folder = refusal.member
    else:
        folder = refusal.member.rpartition("/")[0]
    key = layout.key_of_folder(folder)
    return (
        refusal if key is None else replace(refusal, subject=key[0], sequence=key[1], view=key[2])
    )


def _empty_places(
    layout: type[Layout], folders: Iterable[tuple[str, str]], found: set[Key]
) -> list[Refusal]:
    """Sequences without a frame: empty folders where a sequence would lie."""
    empty: dict[Key, Refusal] = {}
    for container, folder in folders:
        key = layout.key_of_folder(folder or container)
        if key is not None and key not in found:
            empty.setdefault(key, Refusal(container, folder, "an empty folder", "", 0, *key))
    return list(empty.values())


def _introduce(dataset: Dataset, root: Path, layout: Layout, containers: int) -> None:
    """Print what was recognized, and what follows from that."""
    first = layout.protocols[0]  # the others have the same gallery and probes
    print(f"{dataset}: {layout.name} ({layout.form}), {containers} containers below {root}")
    if layout.dataset != dataset:
        print(f"{dataset}: this is not how {dataset} is handed out: {first.title} takes its place")
    print(
        f"{dataset}: split: {layout.split_words}; gallery: {first.gallery_words}; "
        f"probes: {first.probe_words}"
    )


def _scan_all(
    dataset: Dataset, root: Path, names: list[str], workers: int, caps: Caps | None
) -> list[Scan]:
    scans: list[Scan] = []
    broken: list[DamagedArchiveError] = []
    own = (root / releases.DESCRIPTION).is_file()
    work = partial(_scan_or_damage, dataset, root, recognize_own if own else recognize, caps)
    with Progress(f"{dataset}: listing", len(names), "containers") as progress:
        for outcome in map_in_order(work, names, workers, progress.advance):
            if isinstance(outcome, Scan):
                scans.append(outcome)
            else:
                broken.append(outcome)
    if broken:
        raise releases.cannot_be_read(dataset, root, broken)
    return scans


def _scan_or_damage(
    dataset: Dataset,
    root: Path,
    recognize: Callable[[str], tuple[str, Key] | None],
    caps: Caps | None,
    container: str,
) -> Scan | DamagedArchiveError:
    try:
        return releases.scan(dataset, root, container, recognize, caps)
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


def _row(dataset: Dataset, item: Found, layout: Layout) -> dict[str, object]:
    return {
        "dataset": dataset,
        "subject": item.subject,
        "sequence": item.sequence,
        "view": item.view,
        "split": layout.split(item.subject, item.sequence),
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
    damaged = refusals.loc[refusals["reason"] == DAMAGED, ["container", "detail"]]
    if len(damaged):
        names = [f"{name}: {detail}" for name, detail in damaged.itertuples(index=False)]
        print(
            f"warning: {dataset}: {len(names)} archive(s) are damaged, and of each only what is "
            f"sure to be whole is used. Download them again:\n{listing(names)}"
        )
