"""A dataset as a torch IterableDataset, split among readers and resumable."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow.compute as pc
import torch
from torch import distributed
from torch.utils.data import IterableDataset, get_worker_info

from ..reader.dataset import Dataset, open_dataset
from ..reader.rows import RowFilter
from .decoding import Decoder, ErrorPolicy, Errors, Transform
from .iteration import Iteration
from .order import Epoch, Reader, refs
from .stream import Wanted, stream

STATE_VERSION = 1


class StrataImages(IterableDataset):
    """The pictures of a dataset at ``layers`` layers, for training.

    Yields a dictionary for each picture: ``key``, ``image`` (``(H, W, 3) uint8`` on ``device``) and
    the chosen columns. The column ``fields`` is a dictionary of bytes by name (``json``, ``cls``,
    ...). With ``batch_size`` it yields batches, for ``DataLoader(images, batch_size=None)``:
    ``key`` is a list, ``image`` one tensor ``(B, H, W, 3)``, and so on. A batch holds pictures of
    one size; it is smaller than ``batch_size`` at the end and if there are too many sizes. With
    ``transform``, which may give all pictures one size, a batch holds pictures as they follow, and
    ``image`` is a list if their shapes differ.

    The readers are the workers of the ``DataLoader`` of every rank. Together they read each picture
    once per epoch, in equal parts. The order of an epoch depends only on ``seed``, its number
    (``set_epoch``) and the number of readers. ``state_dict`` and ``load_state_dict`` resume exactly
    after the last item that was yielded; with workers, call those of torchdata's
    ``StatefulDataLoader``.

    Args:
        url: of a dataset, as for ``open_dataset``; ``options`` are its storage options.
        layers: how many to read; default all. A picture that stores fewer, and whose original is
            kept, is decoded from the original.
        fields: side fields to return with each picture: ``caption`` (str) and ``label`` (int, or
            str if it is no whole number), wherever they are stored (``txt``, ``cls``, inside
            ``json``, ...), and others by their own names, as bytes. None if a picture has none.
        columns: further columns, such as ``fields`` (all of them) or ``alpha``.
        filter: an expression over the columns of metadata; see ``Dataset.batches``.
        shuffle_buffer: 0 keeps the dataset's order. Otherwise files, row groups and rows are
            shuffled, and then the rows go through a shuffle buffer of so many streams.
        seed: of the order.
        batch_size: pictures in a batch; None yields single ones.
        device: where pictures are decoded. CUDA needs ``num_workers=0``, or ``encoded`` and
            ``decode_batches``.
        encoded: yield ``encoded`` (an EncodedImage, or a KeptOriginal) instead of ``image``, and
            lists of samples instead of batches.
        max_side: pixels; larger pictures are decoded smaller (``Codec.decode_small``).
        transform: called with each picture's tensor; what it returns becomes ``image``.
        decode_options: for ``Codec.decode``, such as ``{"decoder": "realistic"}``.
        errors: what to do with a picture that is damaged. ``"raise"`` raises DamagedDataError;
            ``"skip"`` logs a warning; a function is called with the key ('' if it is unknown) and
            the error. Both leave the picture out and count it (``skipped``).
        rank, world_size: of this process; default: those of ``torch.distributed``, if it is used.
        manifest: the number of the dataset's manifest; default: the newest. All workers and epochs
            use the same. Give it if ranks start while the dataset grows.

    Raises DatasetError and StorageError as ``Dataset`` does; iterating raises them too, whatever
    ``errors`` is.
    """

    def __init__(
        self,
        url: str,
        layers: int | None = None,
        *,
        fields: Sequence[str] = (),
        columns: Sequence[str] = (),
        filter: pc.Expression | None = None,
        shuffle_buffer: int = 0,
        seed: int = 0,
        batch_size: int | None = None,
        device: str = "cpu",
        encoded: bool = False,
        max_side: int | None = None,
        transform: Transform | None = None,
        decode_options: Mapping[str, Any] | None = None,
        errors: Errors = "raise",
        rank: int | None = None,
        world_size: int | None = None,
        manifest: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if (rank is None) != (world_size is None):
            raise ValueError("rank and world_size belong together: give both or neither")
        if rank is not None and world_size is not None and not 0 <= rank < world_size:
            raise ValueError(f"rank must be 0 to {world_size - 1}, got {rank}")
        if shuffle_buffer < 0 or (batch_size is not None and batch_size < 1):
            raise ValueError("shuffle_buffer must be at least 0, and batch_size at least 1")
        if encoded and (max_side or transform or decode_options):
            raise ValueError(
                "max_side, transform and decode_options are for decoding: with encoded=True, pass "
                "them to decode_batches"
            )
        if isinstance(fields, str) or {*fields} & {"key", "image", "encoded", *columns}:
            raise ValueError(
                "fields must be a tuple of names, such as ('caption', 'label'), without key, "
                f"image, encoded and names in columns: {fields!r}"
            )
        self.url, self.options, self.fields = url, options, tuple(fields)
        self.layers, self.columns, self.filter = layers, tuple(columns), filter
        self.shuffle_buffer, self.seed = shuffle_buffer, seed
        self.batch_size, self.device, self.encoded = batch_size, device, encoded
        self.max_side, self.transform = max_side, transform
        self.decode_options = dict(decode_options or {})
        self.errors = errors
        self._rank = None if rank is None or world_size is None else (rank, world_size)
        # Shared, so that persistent workers see the next epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._opened: tuple[int, Dataset] | None = None
        self._iteration: Iteration | None = None
        self._resume: dict[str, Any] | None = None
        ErrorPolicy(errors)
        self.manifest = manifest
        self.manifest = self.dataset.manifest

    @property
    def dataset(self) -> Dataset:
        """The dataset. Each process opens it itself, because connections do not survive a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            opened = open_dataset(self.url, self.options, manifest=self.manifest)
            self._opened = (os.getpid(), opened)
        return self._opened[1]

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    @property
    def skipped(self) -> int:
        """How many pictures the latest iteration of this process has left out."""
        return self._iteration.skipped if self._iteration else 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, which starts at its beginning."""
        if epoch != self.epoch:
            self._iteration = self._resume = None
        self._epoch.fill_(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The position of the latest iteration, after the last item that it has yielded."""
        done = self._iteration
        if done is None:
            return self._resume or {"version": STATE_VERSION, "epoch": self.epoch, "position": 0}
        return {
            "version": STATE_VERSION,
            "epoch": done.epoch.number,
            "position": done.position,
            "waiting": done.waiting,
            "skipped": done.skipped,
            "manifest": self.manifest,
            "reader": [done.reader.number, done.reader.of],
            "order": done.order,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration continue where ``state`` was taken.

        Also sets the epoch and the manifest. Raises ValueError if another release made the state.
        Iterating raises ValueError if the state is of another dataset, order, rank or worker.
        """
        if state.get("version") != STATE_VERSION:
            raise ValueError(f"{self.url}: this state was made by a release that is not compatible")
        self._epoch.fill_(state["epoch"])
        self._resume = dict(state)
        self._iteration = None
        if state.get("manifest", self.manifest) != self.manifest:
            self.manifest, self._opened = state["manifest"], None

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        if worker is not None and not self.encoded and torch.device(self.device).type != "cpu":
            raise ValueError(
                f"device={self.device!r}: workers of a DataLoader cannot share it; use "
                "num_workers=0, or encoded=True and pipeline.decode_batches around the DataLoader"
            )
        rank, world = self._rank_and_world()
        number, of = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        dataset = self.dataset
        dataset.check_columns(self.columns)
        where = RowFilter.of(self.filter, dataset.url)
        wanted = Wanted(dataset.layer_count(self.layers), self.columns, where, self.fields)
        iteration = Iteration(
            Epoch(self.seed, self.epoch, self.shuffle_buffer),
            Reader(rank * of + number, world * of),
            self._order(),
            None if self.encoded else self._decoder(),
            ErrorPolicy(self.errors),
            self.batch_size,
            by_size=self.transform is None,
        )
        state, self._resume = self._resume, None
        waiting: frozenset[int] = frozenset()
        if state is not None and state["position"]:
            self._check(state, iteration)
            iteration.position, iteration.skipped = state["position"], state["skipped"]
            waiting = frozenset(state["waiting"])
        order = refs(dataset, iteration.epoch, iteration.reader)
        self._iteration = iteration
        return iteration.run(stream(dataset, order, wanted, iteration.position, waiting))

    def _decoder(self) -> Decoder:
        codec = self.dataset.codec(self.device)
        return Decoder(codec, self.device, self.max_side, self.transform, self.decode_options)

    def _rank_and_world(self) -> tuple[int, int]:
        if self._rank is not None:
            return self._rank
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return 0, 1

    def _order(self) -> str:
        """A hash of all that order and batches depend on, except for epoch and reader."""
        dataset = self.dataset
        settings: list[Any] = [self.seed, self.shuffle_buffer, self.batch_size, self.max_side]
        settings += [self.transform is None, str(self.filter), dataset.fingerprint]
        return hashlib.sha256(json.dumps([dataset.files.digest, settings]).encode()).hexdigest()[
            :16
        ]

    def _check(self, state: Mapping[str, Any], iteration: Iteration) -> None:
        reader = iteration.reader
        if state["reader"] != [reader.number, reader.of]:
            number, of = state["reader"]
            raise ValueError(
                f"{self.url}: the state is of reader {number} of {of} (ranks times workers), but "
                f"this is reader {reader.number} of {reader.of}: resume with as many ranks and "
                "workers, each with its own state"
            )
        if state["order"] != iteration.order:
            raise ValueError(
                f"{self.url}: the state was taken with other data files, or another seed, "
                "shuffle_buffer, batch_size, max_side, filter or transform"
            )

    def __getstate__(self) -> dict[str, Any]:
        """For workers, which open the dataset themselves and do not know the rank."""
        state = self.__dict__ | {"_opened": None, "_iteration": None}
        if self._rank is None and distributed.is_available() and distributed.is_initialized():
            state["_rank"] = self._rank_and_world()
        return state
