"""Fuzz datasets as a whole: JSON, Parquet footers and pages, indexes, key maps.

    python tests/fuzz/fuzz_datasets.py 5000

Each round damages one file of a small dataset and, as a forger would, corrects sizes and checksums
around it. Then everything is read. Allowed are errors in words, pictures that are left out, and the
right pictures. It reports rounds that took too much time or memory, other exceptions, and pictures
that are wrong without a word. A round that ends the process fails as well.
"""

import json
import random
import shutil
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from codec.errors import StrataError
from pipeline import open_dataset
from pipeline.dataset.rows import Row
from pipeline.reader.index_keys import index_keys
from pipeline.reader.key_map import KeyMap
from tests.pipeline.makers import ToyCodec, picture
from tests.pipeline.streams import write_dataset

MOST_BYTES, MOST_SECONDS = 512 << 20, 5.0
KEYS = [f"k{number:03d}" for number in range(40)]
VALUES: list[Any] = [
    *(None, True, -1, 0, 1, 255, 1 << 31, 1 << 62, 1 << 80, 1.5, float("inf"), "", "x", "../x"),
    *([], {}, [[]], ["a"], "\x00", "9" * 50, [None], {"a": None}),
]


def make(folder: Path) -> ToyCodec:
    """Two shards of small pictures, with indexes and a map of keys."""
    (folder / "model").write_bytes(b"toy")
    codec = ToyCodec(folder / "model")
    shards = []
    for part in range(2):
        keys = KEYS[part::2]
        encoded = codec.encode([picture(KEYS.index(key), 8, 10) for key in keys], layers=4)
        shards.append(
            [
                Row(key, number, encoded=one, source_bytes=99, fields=(("json", b"{}"),))
                for number, (key, one) in enumerate(zip(keys, encoded, strict=True))
            ]
        )
    write_dataset(str(folder / "set"), shards, 4)
    index_keys(str(folder / "set"))
    return codec


def damage(root: Path, rng: random.Random) -> str:
    """Harm one file; returns which and how."""
    kinds = ["dataset.json", "manifest-*.json", "data/*", "index/*", "keys/*"]
    path = rng.choice(sorted(root.glob(rng.choice([*kinds, "data/*", "index/*"]))))
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        told = change(content, rng)
        path.write_text(json.dumps(content))
        return f"{path.name}: {told}"
    data = bytearray(path.read_bytes())
    is_parquet = path.suffix == ".parquet"
    length = int.from_bytes(data[-8:-4], "little") if is_parquet else len(data)
    footer = rng.random() < 0.6
    low = max(0, len(data) - 8 - length) if is_parquet and footer else 0
    high = len(data) - 8 if is_parquet else len(data)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        at = rng.randrange(low, high)
        way = rng.randrange(5)
        if way == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif way == 1:
            data[at] = rng.choice([0, 1, 127, 128, 255])
        elif way == 2:
            data[at : at + 5] = b"\xff\xff\xff\xff\x0f"  # a large number
        elif way == 3:
            del data[at : at + rng.choice([1, 4, 100])]
        else:
            data[at:at] = data[at : at + rng.choice([1, 8, 200])]
        high = min(high, len(data) - 8)
    if is_parquet:
        told_length = length + len(data) - path.stat().st_size if footer else length
        data[-8:-4] = max(0, told_length).to_bytes(4, "little")
        path.write_bytes(data)
        correct(root, path, bytes(data))
    elif rng.random() < 0.5:
        data[20:24] = zlib.crc32(data[:20]).to_bytes(4, "little")
        path.write_bytes(data)
    return f"{path.parent.name}/{path.name}{' footer' if footer else ''}"


def change(content: Any, rng: random.Random) -> str:
    """Replace, remove or repeat one value somewhere in ``content``."""
    places = list(values_in(content))
    holder, key, told = rng.choice(places)
    if isinstance(holder, dict) and rng.random() < 0.2:
        del holder[key]
        return f"without {told}"
    holder[key] = rng.choice([*VALUES, rng.choice(places)[0]])
    try:
        json.dumps(content)
    except (ValueError, RecursionError):
        holder[key] = None
    return told


def values_in(content: Any, told: str = "") -> Iterator[tuple[Any, Any, str]]:
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in list(items):
        yield content, key, f"{told}.{key}"
        if isinstance(value, dict | list):
            yield from values_in(value, f"{told}.{key}")


def correct(root: Path, path: Path, data: bytes) -> None:
    """Let the manifest agree with a file."""
    (manifest,) = root.glob("manifest-*.json")
    content = json.loads(manifest.read_text())
    length = int.from_bytes(data[-8:-4], "little") + 8
    facts = {
        "bytes": len(data),
        "footer_bytes": length,
        "footer_crc32": zlib.crc32(data[-length:]),
    }
    for entry in content["files"]:
        if entry["path"].endswith(path.name):
            (entry if path.parent.name == "data" else entry["index"]).update(facts)
    manifest.write_text(json.dumps(content))


def read(url: str, codec: ToyCodec, expected: dict[str, Any]) -> list[str]:
    """Read in all ways. Returns what must not be."""
    wrong: list[str] = []

    def check(records: Any) -> None:
        for record in records:
            try:
                (found,) = codec.decode([record.encoded])
            except StrataError:
                continue
            if record.key not in expected or not (found >> 6 == expected[record.key] >> 6).all():
                wrong.append(f"{record.key!r} is another picture")

    def maps() -> None:
        KeyMap(dataset.store, dataset.files).files_with(KEYS)

    try:
        dataset = open_dataset(url)
    except StrataError:
        return wrong
    ways: list[Callable[[], object]] = [
        lambda: dataset.page(limit=50, search="0"),
        lambda: dataset.page(limit=50),
        lambda: dataset.page(limit=50, search="0", captions=True),
        lambda: check(dataset.fetch(KEYS, 1, missing="skip")),
        lambda: check(dataset.fetch(KEYS[:3], columns=["original", "alpha"])),
        lambda: check(dataset.read(layers=1)),
        lambda: check(dataset.read(columns=["fields", "status"])),
        lambda: list(dataset.problems()),
        maps,
    ]
    for way in ways:
        try:
            way()
        except StrataError:
            pass
        except Exception as error:
            wrong.append(f"{type(error).__name__}: {error}")
    return wrong


def peak(reset: bool = False) -> int:
    """The most memory since the last reset, in bytes."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def fuzz(rounds: int, seed: int = 0) -> list[str]:
    """What went wrong, each with the seed of its round."""
    found = []
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        codec = make(folder)
        expected = {key: picture(number, 8, 10) for number, key in enumerate(KEYS)}
        assert read(str(folder / "set"), codec, expected) == []
        for number in range(seed, seed + rounds):
            root = folder / "damaged"
            shutil.copytree(folder / "set", root)
            print(f"round {number}", end="\r", flush=True)
            told = damage(root, random.Random(number))
            before, started = peak(reset=True), time.monotonic()
            wrong = read(str(root), codec, expected)
            took, grown = time.monotonic() - started, peak() - before
            if took > MOST_SECONDS:
                wrong.append(f"took {took:.1f} s")
            if grown > MOST_BYTES:
                wrong.append(f"took {grown >> 20} MiB")
            found += [f"round {number}, {told}: {one}" for one in wrong]
            shutil.rmtree(root)
    return found


if __name__ == "__main__":
    begun = time.monotonic()
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    problems = fuzz(count, first)
    print(f"\n{count} rounds in {time.monotonic() - begun:.0f} s, {len(problems)} problems")
    print("\n".join(problems))
    sys.exit(bool(problems))
