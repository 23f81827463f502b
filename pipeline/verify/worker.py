"""The worker of a verify job: reads one data file and returns a list of its problems.

Damage is a result. Exceptions are for faults that may pass: a store that does not answer, a device
without memory.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from codec import Codec, EncodedImage
from codec.batches import batches_by_size, one_by_one_on_error

from ..dataset.index_writer import index_facts, index_table, same_index
from ..dataset.layout import index_path
from ..dataset.models import load_model
from ..dataset.parquet import ParquetFile
from ..dataset.rows import encoded_image, file_sha256, schema, stream_columns
from ..reader.dataset import DataFile
from ..running.stages import StageClock
from ..running.worker import Worker, WorkerSettings
from ..running.worker_errors import picklable_errors
from ..stores.reasons import describe
from ..stores.store import Store
from .checks import LISTED_PROBLEMS
from .rows import STATUSES, first_line, read_group, reraise_passing, row_problems

BATCH_PIXELS = 1 << 22


@dataclass(frozen=True)
class VerifySettings(WorkerSettings):
    """Settings of every worker. ``dataset`` is a URL."""

    dataset: str
    model_id: str
    layers: int
    decode: bool = True


class _Problems:
    """The first problems of a file, and how many there are."""

    def __init__(self) -> None:
        self.first: list[str] = []
        self.count = 0

    def add(self, text: str) -> None:
        self.count += 1
        if len(self.first) < LISTED_PROBLEMS:
            self.first.append(text.encode("utf-8", "backslashreplace").decode())


class ShardVerifier(Worker[VerifySettings]):
    """Checks data files on one device: ``ready`` loads the dataset's model, ``run`` checks a file.

    It takes one file at a time, because each may need its size on the local disk.
    """

    @cached_property
    def store(self) -> Store:
        """The dataset."""
        return Store(self.settings.dataset, self.settings.input_options)

    @cached_property
    def codec(self) -> Codec:
        """The dataset's own copy of the model."""
        settings = self.settings
        return load_model(
            settings.dataset,
            settings.model_id,
            settings.device,
            settings.input_options,
            settings.scratch,
        )

    @picklable_errors
    def ready(self) -> str:
        """Load the model, if pictures are to be decoded. Raises UnknownModelError."""
        return self.codec.model_id if self.settings.decode else self.settings.model_id

    @picklable_errors
    def run(self, file: DataFile) -> dict[str, Any]:
        """Read all of a data file and return its problems.

        Returns its ``path``, the first ``problems`` and their ``problem_count``, the number of
        ``rows``, of ``ok`` (sound) and ``bad`` (damaged) ones, and of ``decoded`` pictures. For a
        sound file, ``index_problem`` says what is wrong with its index, or is empty.
        """
        self.ready()
        started, clock = time.monotonic(), StageClock(self.activity.clock)
        problems, counts = _Problems(), Counter[str]()
        size, index_problem = 0, ""
        with self.activity.shard(file.name, of=file.rows), ExitStack() as stack:
            try:
                with clock.timed("download"):
                    local = stack.enter_context(self.store.local(file.path, self.settings.scratch))
                    size = local.stat().st_size
            except FileNotFoundError:
                problems.add("is gone")
            else:
                self.activity.transferred(read=size)
                self.activity.show(file.name, stage="check")
                self._check(file, local, problems, counts, clock)
                if not problems.count:
                    index_problem = self._index_problem(file, local, clock)
        return {
            "path": file.path,
            "problems": problems.first,
            "problem_count": problems.count,
            "index_problem": index_problem,
            "rows": counts["rows"],
            "ok": counts["rows"] - counts["damaged"],
            "bad": counts["damaged"],
            "decoded": counts["decoded"],
            "source": {"url": f"{self.store.url}/{file.path}", "size": size},
            "seconds": round(time.monotonic() - started, 3),
            "stage_seconds": clock.seconds(),
        }

    # -- the file ---------------------------------------------------------------------------------

    def _check(
        self,
        file: DataFile,
        local: Path,
        problems: _Problems,
        counts: Counter[str],
        clock: StageClock,
    ) -> None:
        record = file.record
        if local.stat().st_size != file.bytes:
            problems.add(f"has {local.stat().st_size} bytes, and had {file.bytes} when written")
        with clock.timed("check"):
            digest = file_sha256(local)
        if digest != record["sha256"]:
            problems.add(f"its sha256 is {digest}, and was {record['sha256']} when it was written")
        try:
            # The second one reads pages that fail their checksum, to find the damaged pictures.
            checked = ParquetFile(local)
            unchecked = ParquetFile(local, checksums=False)
        except Exception as error:
            reraise_passing(error)
            problems.add(f"cannot be read: {first_line(error)}")
            return
        unread: set[str] = set()
        for group in range(checked.num_row_groups):
            with clock.timed("check"):
                names = schema(self.settings.layers).names
                rows, lost = read_group(checked, unchecked, group, names, problems.add)
                sound = self._check_rows(rows, lost, counts, problems)
            unread |= lost
            self.activity.add(file.name, samples=len(rows) - len(sound), bad=len(rows) - len(sound))
            if self.settings.decode:
                self._decode(file, sound, counts, problems, clock)
            else:
                self.activity.add(file.name, samples=len(sound))
        for name in ("rows", *STATUSES):
            if "status" not in unread and counts[name] != record[name]:
                problems.add(f"has {counts[name]} {name}, and had {record[name]} when written")

    def _index_problem(self, file: DataFile, local: Path, clock: StageClock) -> str:
        """What is wrong with the file's index, or ''."""
        if file.index is None:
            return ""
        path = index_path(file.name)
        try:
            with self.store.local(path, self.settings.scratch) as found, clock.timed("check"):
                table = index_table(local, self.settings.layers)
                facts = index_facts(path, found, table) if same_index(found, table) else None
        except FileNotFoundError:
            return "is gone"
        if facts is None:
            return "has wrong places of the values in its data file"
        if any(facts[name] != value for name, value in file.index.items() if name in facts):
            return "is not the index that its record names"
        return ""

    def _check_rows(
        self,
        rows: list[dict[str, Any]],
        lost: set[str],
        counts: Counter[str],
        problems: _Problems,
    ) -> list[dict[str, Any]]:
        """The rows without problems, which can be decoded."""
        sound, settings = [], self.settings
        for row in rows:
            key = f"row {counts['rows']}" if "key" in lost else repr(row["key"])
            found = list(
                row_problems(row, counts["rows"], lost, settings.model_id, settings.layers)
            )
            for problem in found:
                problems.add(f"{key}: {problem}")
            counts["rows"] += 1
            counts[str(row["status"])] += 1
            counts["damaged"] += bool(found)
            if not found:
                sound.append(row)
        return [] if lost & {*stream_columns(self.settings.layers)} else sound

    def _decode(
        self,
        file: DataFile,
        rows: list[dict[str, Any]],
        counts: Counter[str],
        problems: _Problems,
        clock: StageClock,
    ) -> None:
        """Decode every picture. Compares the pixels if its stream is lossless."""
        pictures = [row for row in rows if row["header"] is not None]
        self.activity.show(file.name, stage="device")
        self.activity.add(file.name, samples=len(rows) - len(pictures))
        sizes = [(row["height"], row["width"]) for row in pictures]
        for batch in batches_by_size(sizes, self.settings.batch_size, BATCH_PIXELS):
            chosen = [pictures[number] for number in batch]
            self.activity.show(file.name, key=chosen[0]["key"])
            streams = [encoded_image(row, self.settings.layers, file.name) for row in chosen]
            with clock.timed("device"):
                decoded = one_by_one_on_error(self._decode_batch, streams)
            for row, stream, picture in zip(chosen, streams, decoded, strict=True):
                problem = self._picture_problem(row, stream, picture)
                if problem:
                    problems.add(f"{row['key']!r}: {problem}")
                counts["decoded"] += not isinstance(picture, Exception)
                counts["damaged"] += bool(problem)
                self.activity.add(file.name, samples=1, bad=bool(problem))
        self.activity.show(file.name, stage="check")

    def _decode_batch(self, streams: list[EncodedImage]) -> list[Any]:
        return self.codec.decode(streams)

    def _picture_problem(self, row: Mapping[str, Any], stream: EncodedImage, picture: Any) -> str:
        if isinstance(picture, Exception):
            reraise_passing(picture)
            return f"does not decode: {describe(picture)}"
        if picture.shape != (row["height"], row["width"], 3):
            return f"decodes to an array of {picture.shape}"
        exact = self.codec.lossless and stream.num_layers == self.codec.num_layers
        if exact and row["image_sha256"] not in (None, hashlib.sha256(picture.tobytes()).digest()):
            return "decodes to other pixels than were encoded"
        return ""
