"""A process that damages small real archives, and checks what the first two stages make of them.

It answers each line ``<kind> <seed>`` with one line: ``whole``, ``refused`` or ``stopped``, or
``FAULT`` and what is wrong. A seed always means the same damage.
"""

import gzip
import io
import os
import random
import shutil
import signal
import sys
import tarfile
import traceback
import zipfile
import zlib
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import py7zr
import py7zr.compressor

from pipeline.catalogue import REFUSALS
from pipeline.errors import PipelineError
from pipeline.ingestion import ingest
from pipeline.normalizing import normalize
from pipeline.settings import Dataset
from pipeline.silhouette_store import SilhouetteStore
from pipeline.tables import KEY, read_table

LIMIT_S = 20
"""A mutation that takes longer ends the process."""

PASSWORD = "correct horse"
Key = tuple[str, str, str]
Files = dict[str, bytes]
Span = tuple[int, int]


def frames(kind: str, subjects: list[str]) -> Files:
    """Two sequences of four frames per subject, each a bright ellipse of its own."""
    files = {}
    for subject in subjects:
        for sequence in ("00", "01") if kind in OUMVLP else ("1", "2"):
            for frame in range(1, 5):
                picture = np.zeros((48, 40), np.uint8)
                shape = (6 + int(subject) % 7 + frame, 19 - int(sequence))
                cv2.ellipse(picture, (18 + frame % 3, 24), shape, 0, 0, 360, 255, -1)
                suffix, path = ".png", f"{subject}/{sequence}/090/{frame}.png"
                if kind not in OUMVLP:
                    suffix = ".jpg"
                    path = f"forTrain/{subject}/H/scene1/nm/090/{sequence}/{frame}.jpg"
                files[path] = cv2.imencode(suffix, picture)[1].tobytes()
    return files


def seven_zip(files: Files, **options: Any) -> bytes:
    """Two blocks of half the members each."""
    buffer = io.BytesIO()
    raw_header = options.pop("raw_header", False)
    names = list(files)
    for mode, half in (("w", names[: len(names) // 2]), ("a", names[len(names) // 2 :])):
        buffer.seek(0)
        appended: dict[str, Any] = {} if mode == "w" else {"mode": "a"}
        with py7zr.SevenZipFile(buffer, **({"mode": "w"} | options | appended)) as archive:
            archive.set_encoded_header_mode(not raw_header)
            if options.get("header_encryption"):
                archive.set_encrypted_header(True)
            for name in half:
                archive.writestr(files[name], name)
    return buffer.getvalue()


def tar(files: Files) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zipped(files: Files, method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


def gzipped(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def tars(files: Files, pack: Callable[[bytes], bytes] = bytes, suffix: str = ".tar") -> Files:
    """One tar per subject of CASIA-E."""
    subjects = sorted({name.split("/")[1] for name in files})
    return {
        f"{subject}{suffix}": pack(
            tar({name: c for name, c in files.items() if name.split("/")[1] == subject})
        )
        for subject in subjects
    }


OUMVLP: dict[str, tuple[str, Callable[[Files], bytes]]] = {
    "7z": ("x.7z", lambda files: seven_zip(files)),
    "7z stored": ("x.7z", lambda files: seven_zip(files, filters=[{"id": py7zr.FILTER_COPY}])),
    "7z resealed": ("x.7z", lambda files: seven_zip(files, raw_header=True)),
    "7z encrypted": ("x.7z", lambda files: seven_zip(files, password=PASSWORD)),
    "7z hidden": (
        "x.7z",
        lambda files: seven_zip(files, password=PASSWORD, header_encryption=True),
    ),
    "tar": ("x.tar", tar),
    "tar.gz": ("x.tar.gz", lambda files: gzipped(tar(files))),
    "zip": ("x.zip", zipped),
    "zip deflated": ("x.zip", lambda files: zipped(files, zipfile.ZIP_DEFLATED)),
}
CASIA_E: dict[str, tuple[str, Callable[[Files], bytes]]] = {
    "zip of tars": ("x.zip", lambda files: zipped(tars(files))),
    "deflated zip of tars": ("x.zip", lambda files: zipped(tars(files), zipfile.ZIP_DEFLATED)),
    "zip of tgz": ("x.zip", lambda files: zipped(tars(files, gzipped, ".tgz"))),
    "tree": ("", lambda files: b""),  # one frame is damaged
}
KINDS = (*OUMVLP, *CASIA_E)


def mutate(content: bytes, rng: random.Random) -> tuple[bytes, list[Span], str]:
    """Damaged bytes, the spans [first, end) of the old ones that are not as they were, a word."""
    size = len(content)
    word = rng.choice(
        ["flip", "flip", "flip", "run", "run", "cut", "insert", "delete", "swap", "repeat", "copy"]
    )
    at = rng.randrange(size)
    length = min(rng.choice([1, 2, 7, 16, 100, 512, 512, 1024, 3000]), size)
    if word in ("swap", "repeat", "copy") and rng.random() < 0.7:  # tars consist of such blocks
        at, length = at // 512 * 512, 512 * rng.randint(1, 3)
    end = min(at + length, size)
    other = min(rng.randrange(size) // 512 * 512, max(0, size - (end - at)))
    if word == "flip":
        changed, spans = bytearray(content), []
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            changed[at] ^= 1 << rng.randrange(8)
            spans.append((at, at + 1))
            at = rng.randrange(size)
        return bytes(changed), spans, word
    if word == "run":
        fill = rng.choice([bytes(end - at), b"\xff" * (end - at), rng.randbytes(end - at)])
        return content[:at] + fill + content[end:], [(at, end)], word
    if word == "cut":
        return content[:at], [(at, size)], word
    if word == "insert":
        return content[:at] + rng.randbytes(length) + content[at:], [(at - 1, at + 1)], word
    if word == "delete":
        return content[:at] + content[end:], [(at, end)], word
    if word == "repeat":
        return content[:end] + content[at:], [(end - 1, end + 1)], word
    block = content[at:end]
    place = slice(other, other + len(block))
    changed = bytearray(content)
    changed[at:end] = content[place] if word == "swap" else block
    changed[place] = block
    return bytes(changed), [(at, end), (place.start, place.stop)], word


def reseal(content: bytes, rng: random.Random) -> bytes:
    """A 7z whose header is damaged, and whose checksums say that it is not."""
    start = 32 + int.from_bytes(content[12:20], "little")
    header = bytearray(content[start:])
    for _ in range(rng.choice([1, 1, 2, 3])):
        at = rng.randrange(len(header))
        if rng.random() < 0.5:
            header[at] = rng.choice([0, 1, 0x7F, 0x80, 0xC0, 0xFE, 0xFF, rng.randrange(256)])
        else:
            header[at] ^= 1 << rng.randrange(8)
    place = (start - 32).to_bytes(8, "little") + len(header).to_bytes(8, "little")
    place += zlib.crc32(header).to_bytes(4, "little")
    seal = zlib.crc32(place).to_bytes(4, "little")
    return content[:8] + seal + place + content[32:start] + header


@dataclass
class Base:
    """One kind, undamaged: its files below the root, and what comes out of them."""

    dataset: Dataset
    files: Files
    targets: list[str]
    """Files that may be damaged; what lies in the others must come through."""
    expected: dict[Key, Any] = field(default_factory=dict)
    unguarded: dict[Key, list[Span]] = field(default_factory=dict)
    """Bytes of the target that can change a sequence without any checksum's knowing."""


def base(kind: str, folder: Path) -> Base:
    """Two subjects lie in the archive that is damaged, two beside it keep the dataset usable."""
    if kind in OUMVLP:
        dataset: Dataset = "oumvlp"
        name, pack = OUMVLP[kind]
        good, bad = frames(kind, ["00001", "00002"]), frames(kind, ["00003", "00004"])
    else:
        dataset = "casia_e"
        name, pack = CASIA_E[kind]
        good, bad = frames(kind, ["001", "700"]), frames(kind, ["002", "003"])
        # a test subject needs a gallery and probes
        good |= {path.replace("scene1", "scene2"): content for path, content in good.items()}
    if kind == "tree":
        made = Base(dataset, good | bad, list(bad))
    else:
        made = Base(dataset, good | {name: pack(bad)}, [name])
        made.unguarded = unguarded(kind, made.files[name], bad)
    made.expected, _ = run(made.dataset, made.files, folder)
    assert set(made.expected) == {key_of(path) for path in good | bad}, kind
    return made


def key_of(path: str) -> Key:
    parts = path.split("/")
    if parts[0] == "forTrain":
        _, subject, height, scene, condition, view, number, _ = parts
        return subject, f"{height}-{scene}-{condition}-{number}", view
    return parts[0], parts[1], parts[2]


def unguarded(kind: str, content: bytes, members: Files) -> dict[Key, list[Span]]:
    found: dict[Key, list[Span]] = {}
    if kind == "tar":
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for entry in archive:
                end = entry.offset_data + -(-entry.size // 512) * 512
                found.setdefault(key_of(entry.name), []).append((entry.offset, end))
    elif kind in ("zip", "zip deflated"):  # the table of contents
        for name in members:
            at = content.rfind(name.encode())
            found.setdefault(key_of(name), []).append((at - 46, at + len(name)))
    elif kind in ("7z", "7z encrypted", "7z hidden"):
        # py7zr, unlike 7-Zip, writes no checksum for a header that is packed
        with py7zr.SevenZipFile(io.BytesIO(content), password=PASSWORD) as archive:
            start = 32 + archive.header.main_streams.packinfo.packpositions[-1]
        found = {key_of(name): [(start, len(content))] for name in members}
    return found


def run(dataset: Dataset, files: Files, folder: Path) -> tuple[dict[Key, Any], int]:
    """Sequences that come out, and how many refusals were noted; PipelineError where it stops."""
    root, out = folder / "root", folder / "out"
    for path in (root, out):
        shutil.rmtree(path, ignore_errors=True)
    out.mkdir()
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    sequences, refusals, *_ = ingest(dataset, root, "release", workers=0)
    normalize(dataset, root, sequences, out, 10_000, 3, workers=0)
    refused = len(refusals) + len(read_table(out / "refusals.parquet", REFUSALS))
    store = SilhouetteStore(out)
    keys = store.index[KEY].itertuples(index=False, name=None)
    return {key: store.read(number) for number, key in enumerate(keys)}, refused


def judge(kind: str, seed: int, made: Base, folder: Path) -> str:
    rng = random.Random(f"{kind} {seed}")
    target = rng.choice(made.targets)
    if kind == "7z resealed":
        damaged, touched, word = reseal(made.files[target], rng), [], "reseal"
    else:
        damaged, touched, word = mutate(made.files[target], rng)
    fault = f"FAULT {kind} {seed} ({word} {touched[:4]})"
    try:
        sequences, refused = run(made.dataset, made.files | {target: damaged}, folder)
    except PipelineError as error:
        expected = "fault of the pipeline" not in str(error) and target in str(error)
        return "stopped" if expected else f"{fault}: {error!s:.300}".replace("\n", " | ")
    if os.listdir(folder / "here"):
        return f"{fault}: something was written"
    hit = {
        key
        for key, spans in made.unguarded.items()
        if any(start < end and first < stop for first, end in spans for start, stop in touched)
    }
    if kind == "tree":
        hit = {key_of(target)}
    beside = {key_of(path) for path in made.files if path not in made.targets and "/" in path}
    renamed = kind == "7z resealed" or (hit and kind not in ("tar", "tree"))
    for key, silhouettes in sequences.items():
        same = key in made.expected and np.array_equal(made.expected[key], silhouettes)
        if not same and key not in hit and (key in beside or not renamed):
            return f"{fault}: {key} was changed"
    lost = set(made.expected) - set(sequences)
    if lost & beside and not renamed:  # of two sequences of one name the first is kept
        return f"{fault}: {lost & beside} lost, and lie in other files"
    if lost and not refused:
        return f"{fault}: {lost} lost without a word"
    return "refused" if lost or refused else "whole"


def serve(folder: Path) -> None:
    made: dict[str, Base] = {}
    (folder / "here").mkdir(exist_ok=True)
    os.chdir(folder / "here")
    os.environ["OUMVLP_PASSWORD"] = PASSWORD
    py7zr.compressor.get_random_bytes = bytes  # else a seed would not mean the same twice
    # a password's key takes a quarter of a second
    py7zr.compressor.calculate_key = lru_cache(py7zr.compressor.calculate_key)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libpng's own words
    answers.write(f"{os.getpid()}\n")
    answers.flush()
    for line in sys.stdin:
        kind, _, seed = line.strip().rpartition(" ")
        signal.alarm(LIMIT_S)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            try:
                if kind not in made:
                    made[kind] = base(kind, folder)
                answer = judge(kind, int(seed), made[kind], folder)
            except Exception:  # noqa: BLE001 - whatever else comes out is what is looked for
                trace = " | ".join(traceback.format_exc().splitlines()[-7:])
                answer = f"FAULT {kind} {seed}: {trace}"
        signal.alarm(0)
        answers.write(f"{answer}\n")
        answers.flush()
