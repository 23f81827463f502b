#!/usr/bin/env python
"""What lists and searches cost with captions and without, in requests and bytes.

    python tests/benchmarks/caption_search.py

Four data files of 10,000 pictures each, with a txt and a json beside them as img2dataset writes
them, in a memory that is read like an object store. The streams are random bytes.
"""

import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline.dataset.rows import Row
from pipeline.reader.dataset import Dataset, open_dataset
from tests.pipeline.counting import CountingFileSystem
from tests.pipeline.streams import rows, write_dataset

URL = "counting://bucket/captions"
FILES, PICTURES = 4, 10_000


def samples(number: int) -> Iterator[Row]:
    chance = random.Random(number)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(chance.choices(letters, k=chance.randint(2, 9))) for _ in range(5000)]
    keys = (f"{number:05d}{index:05d}" for index in range(PICTURES))
    for row in rows(keys, (300, 900), number):
        caption = " ".join(chance.choices(words, k=12))
        told = {
            "caption": caption,
            "url": f"https://example.org/{chance.random()}.jpg",
            "key": row.key,
            "status": "success",
            "error_message": None,
            "exif": "{}",
            "width": 768,
            "height": 512,
            "original_width": 1000,
            "original_height": 800,
            "sha256": chance.randbytes(32).hex(),
        }
        fields = (("jpg", None), ("txt", caption.encode()), ("json", json.dumps(told).encode()))
        yield Row(**{**vars(row), "fields": fields})


def measure(name: str, dataset: Dataset, limit: int, **query: Any) -> None:
    CountingFileSystem.requests.clear()
    started, cursor, pages = time.perf_counter(), None, 0
    while True:
        _, cursor = dataset.page(cursor, limit, **query)
        pages += 1
        if cursor is None or "search" not in query:
            break
    seconds = time.perf_counter() - started
    requests, kilobytes = len(CountingFileSystem.requests), CountingFileSystem.bytes_read() / 1000
    print(f"| {name} | {pages} | {requests} | {kilobytes:,.0f} | {seconds:.2f} |", flush=True)


def main() -> None:
    write_dataset(URL, [samples(number) for number in range(FILES)], 2)
    print("| | pages | requests | kB | s |\n|---|---|---|---|---|")
    for name, limit, query in (
        ("a page of 100", 100, {}),
        ("a page of 100, with captions", 100, {"captions": True}),
        ("a page of 500", 500, {}),
        ("a page of 500, with captions", 500, {"captions": True}),
        ("a search in keys that finds nothing", 500, {"search": "%"}),
        ("the same in captions", 500, {"search": "%", "captions": True}),
    ):
        measure(name, open_dataset(URL), limit, **query)
    dataset = open_dataset(URL)
    for name in ("a search in captions, as it is typed: a letter", "and one more"):
        measure(name, dataset, 500, search="%" * (1 + name.startswith("and")), captions=True)


if __name__ == "__main__":
    main()
