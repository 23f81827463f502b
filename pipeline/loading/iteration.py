"""One pass over an epoch: makes samples or batches of rows, and counts its position."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from codec import CorruptStreamError
from codec.batches import windows

from .decoding import Decoder, ErrorPolicy, Sample, collate
from .order import Epoch, Reader
from .stream import StreamedRow

# Without a batch size, so many pictures are decoded together, and at most so many pixels.
DECODED_TOGETHER, DECODED_PIXELS = 32, 1 << 23
WAITING_BATCHES = 8  # so many batches of pictures may wait for others of their size

Size = tuple[int, int]


@dataclass
class Iteration:
    """Turns rows into samples or batches.

    The rows before ``position`` have been yielded, except for those in ``buckets``. ``decoder`` is
    None if samples stay encoded, ``batch_size`` is None if they are yielded one by one. With
    ``by_size`` a batch holds pictures of one size. ``order`` is a hash of what else the order
    depends on.
    """

    epoch: Epoch
    reader: Reader
    order: str
    decoder: Decoder | None
    policy: ErrorPolicy
    batch_size: int | None
    by_size: bool
    position: int = 0
    skipped: int = 0
    buckets: dict[Size, list[StreamedRow]] = field(default_factory=dict)

    @property
    def waiting(self) -> list[int]:
        """Positions of the rows in ``buckets``."""
        return sorted(row.position for rows in self.buckets.values() for row in rows)

    def run(self, rows: Iterable[StreamedRow]) -> Iterator[Any]:
        """Samples, batches, or lists of encoded samples. Raises errors as the policy says."""
        return self._one_by_one(rows) if self.batch_size is None else self._batches(rows)

    def _one_by_one(self, rows: Iterable[StreamedRow]) -> Iterator[Sample]:
        def pixels(row: StreamedRow) -> int:
            height, width = self._size(row)
            return height * width

        together = 1 if self.decoder is None else DECODED_TOGETHER
        for window in windows(rows, pixels, DECODED_PIXELS, together):
            yield from self._made(window)

    def _batches(self, rows: Iterable[StreamedRow]) -> Iterator[Any]:
        """Put rows into buckets by size. Yields a full bucket, or the oldest if too many rows wait.

        The result depends only on the content of the buckets, so it is the same after resuming.
        """
        assert self.batch_size is not None
        most = WAITING_BATCHES * self.batch_size
        waiting = 0
        for row in rows:
            size = self._size(row) if self.by_size else (0, 0)
            bucket = self.buckets.setdefault(size, [])
            bucket.append(row)
            waiting += 1
            self.position = max(self.position, row.position + 1)
            full = len(bucket) == self.batch_size
            if full or waiting == most:
                chosen = size if full else next(iter(self.buckets))
                waiting -= len(self.buckets[chosen])
                yield from self._batch(chosen)
        while self.buckets:
            yield from self._batch(next(iter(self.buckets)))

    def _batch(self, size: Size) -> Iterator[Any]:
        samples = list(self._made(self.buckets.pop(size)))
        if samples:
            yield samples if self.decoder is None else collate(samples)

    def _made(self, window: Sequence[StreamedRow]) -> Iterator[Sample]:
        """The samples of these rows; updates ``position`` and ``skipped`` before each of them."""
        for row, made in zip(window, self._samples(window), strict=True):
            self.position = max(self.position, row.position + 1)
            if isinstance(made, Exception):
                key = None if isinstance(row.sample, Exception) else row.sample["key"]
                self.policy.handle(key, made)
                self.skipped += 1
            else:
                yield made

    def _samples(self, window: Sequence[StreamedRow]) -> list[Sample | Exception]:
        """The sample of each row, decoded if there is a decoder; or its error."""
        made: list[Sample | Exception] = [row.sample for row in window]
        whole = {n: one for n, one in enumerate(made) if not isinstance(one, Exception)}
        if self.decoder is not None and whole:
            decoded = self.decoder.samples(list(whole.values()))
            for n, done in zip(whole, decoded, strict=True):
                made[n] = done
        return made

    def _size(self, row: StreamedRow) -> Size:
        """Height and width; (0, 0) for a damaged picture, whose error decoding will raise."""
        if isinstance(row.sample, Exception):
            return 0, 0
        stream = row.sample["encoded"]
        try:
            return self.decoder.size(stream) if self.decoder else (stream.height, stream.width)
        except CorruptStreamError:
            return 0, 0
