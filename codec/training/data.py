"""Training pictures: reads them from tar shards into memory, and draws random crops."""

import json
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import StrataError
from ..images.files import EXTENSIONS, read_image

Log = Callable[[str], None]
Open = Callable[[str], AbstractContextManager[BinaryIO]]


class Pictures:
    """Training pictures in memory: those at least as large as a crop, and smaller ones.

    Attributes:
        sources: how many pictures came from which source and licence, for the model's card.
    """

    def __init__(self, crop: int) -> None:
        self.crop = crop
        self.large: list[np.ndarray] = []
        self.small: defaultdict[tuple[int, int], list[np.ndarray]] = defaultdict(list)
        self.sources: Counter[str] = Counter()

    def add_tar(
        self,
        name: str,
        stream: BinaryIO,
        log: Log = print,
        first: int = 0,
        every: int = 1,
    ) -> None:
        """Read one WebDataset shard. Pictures that cannot be read are logged and left out.

        Takes only the pictures number ``first + n * every``; other processes take the others.
        """
        found, number, labels, others = 0, 0, {}, set()
        with tarfile.open(fileobj=stream, mode="r|*") as tar:
            for member in tar:
                handle = tar.extractfile(member) if member.isfile() else None
                if handle is None:
                    continue
                data, extension = handle.read(), member.name.rsplit(".", 1)[-1].lower()
                if extension == "json":
                    try:
                        label = json.loads(data)
                        source = f"{label.get('source', '?')} ({label.get('license', '?')})"
                    except (ValueError, AttributeError):
                        source = "?"
                    labels[_key(member.name)] = source
                elif extension in EXTENSIONS:
                    number += 1
                    if (number - 1) % every != first:
                        others.add(_key(member.name))
                        continue
                    try:
                        self.add(read_image(data).rgb)
                        found += 1
                    except StrataError as error:  # one bad picture must not end a long run
                        log(f"{name}: {member.name} left out: {error}")
        mine = [source for key, source in labels.items() if key not in others]
        self.sources.update(mine if labels else ["?"] * found)
        log(f"{name}: {found} pictures")

    def add(self, rgb: np.ndarray) -> None:
        height, width = rgb.shape[:2]
        if min(height, width) >= self.crop:
            self.large.append(rgb)
        elif min(height, width) >= 16:
            self.small[height // 8 * 8, width // 8 * 8].append(rgb)

    def extend(self, others: "Pictures") -> None:
        """Add the pictures of ``others``, which is not changed."""
        self.large += others.large
        for size, group in others.small.items():
            self.small[size] += group
        self.sources += others.sources

    def at(self, step: int) -> "Pictures":
        """The pictures for a step of training, here always the same. See ``ShardWindow``."""
        return self

    def close(self) -> None:
        """Do nothing. See ``ShardWindow``."""

    def take(self, count: int) -> list[np.ndarray]:
        """Remove and return up to ``count`` pictures, half of them large ones if there are both."""
        small = [x for group in self.small.values() for x in group]
        few = min(len(small), max(count // 2, count - len(self.large)))
        taken = self.large[: count - few] + small[:few]
        self.large = self.large[count - few :]
        self.small.clear()
        for picture in small[few:]:
            self.add(picture)
        return taken

    def __len__(self) -> int:
        return len(self.large) + sum(map(len, self.small.values()))

    def mixture(self, crops: int, rng: np.random.Generator) -> list[np.ndarray]:
        """``crops`` crops, and half as many pixels in small pictures if there are any."""
        batches = [self.batch(crops, 0.0, rng)]
        if self.small and self.large:
            batches.append(self.batch(-(-crops // 2), 1.0, rng))
        return [x.permute(1, 2, 0).contiguous().numpy() for batch in batches for x in batch]

    def batch(self, count: int, small_share: float, rng: np.random.Generator) -> Tensor:
        """A batch ``(n, 3, h, w) uint8``: ``count`` crops, or as many pixels in small pictures."""
        if self.small and (not self.large or rng.random() < small_share):
            sizes = list(self.small)
            weight = np.array([len(self.small[s]) for s in sizes], float)
            height, width = sizes[rng.choice(len(sizes), p=weight / weight.sum())]
            count = max(count * self.crop**2 // (height * width) // 4 * 4, 4)
            chosen = [x[:height, :width] for x in _choose(self.small[height, width], count, rng)]
        else:
            chosen = [_crop(x, self.crop, rng) for x in _choose(self.large, count, rng)]
        flipped = [x[:, ::-1] if rng.random() < 0.5 else x for x in chosen]
        return torch.from_numpy(np.stack(flipped)).permute(0, 3, 1, 2).contiguous()


def _key(name: str) -> str:
    """WebDataset's key: the path up to the first dot of the base name."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.split(".", 1)[0]


def _choose(pictures: list[np.ndarray], count: int, rng: np.random.Generator) -> list[np.ndarray]:
    return [pictures[i] for i in rng.integers(len(pictures), size=count)]


def _crop(picture: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random crop. Half of the time the picture is first reduced by up to 2.5, which removes JPEG
    artefacts and gives detail at every scale.
    """
    height, width = picture.shape[:2]
    take = size
    if rng.random() < 0.5:
        take = int(size * rng.uniform(1.0, min(2.5, min(height, width) / size)))
    y, x = rng.integers(height - take + 1), rng.integers(width - take + 1)
    piece = picture[y : y + take, x : x + take]
    if take == size:
        return piece
    return np.asarray(Image.fromarray(piece).resize((size, size), Image.Resampling.LANCZOS))


Share = list[tuple[str, int, int]]  # a shard, its first picture, and the step to the next one


def share_of(shards: Sequence[str], rank: int, size: int) -> Share:
    """The share of process ``rank`` out of ``size``. Together they read each picture once.

    Whole shards are dealt out, so that none is fetched twice, as long as there is one for every
    process. From the remaining shards every process takes every ``size``-th picture.
    """
    whole = len(shards) // size * size
    mine: Share = [(name, 0, 1) for name in shards[rank:whole:size]]
    return mine + [(name, rank, size) for name in shards[whole:]]


def read_share(share: Share, open_shard: Open, crop: int, log: Log = print) -> Pictures:
    """The pictures of a share."""
    pictures = Pictures(crop)
    for name, first, every in share:
        with open_shard(name) as stream:
            pictures.add_tar(name, stream, log, first, every)
    return pictures


class ShardWindow:
    """Some shards of a share at a time, for corpora that are larger than memory.

    The shards are used in a random order, again and again. Every ``steps`` steps of training, the
    next shard replaces the oldest one; it has been read in the background. The shards of a step
    depend only on the seed, so an interrupted run goes on with the same shards.
    """

    def __init__(
        self,
        share: Share,
        open_shard: Open,
        crop: int,
        shards: int,
        steps: int,
        seed: int,
        log: Log = print,
    ) -> None:
        self._share, self._open, self._crop, self._log = share, open_shard, crop, log
        self._shards, self._steps = shards, steps
        self._order = np.random.default_rng(seed).permutation(len(share))
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="shards")
        self._read: dict[int, Future[Pictures]] = {}
        self._first, self._now = -1, Pictures(crop)

    def at(self, step: int) -> Pictures:
        """The pictures for a step. Raises the errors of reading their shards."""
        first = step // self._steps
        if first != self._first:
            wanted = range(first, first + self._shards)
            ahead = range(first, first + self._shards + 1)
            self._read = {turn: self._read.get(turn) or self._begin(turn) for turn in ahead}
            self._now = Pictures(self._crop)
            for turn in wanted:
                self._now.extend(self._read[turn].result())
            if not len(self._now):
                names = sorted({name for turn in wanted for name, _, _ in self._share_of(turn)})
                raise StrataError(f"no picture of at least 16x16 in {', '.join(names)}")
            self._first = first
        return self._now

    def close(self) -> None:
        """Stop reading."""
        self._reader.shutdown(wait=False, cancel_futures=True)

    def _begin(self, turn: int) -> "Future[Pictures]":
        share = self._share_of(turn)
        return self._reader.submit(read_share, share, self._open, self._crop, self._log)

    def _share_of(self, turn: int) -> Share:
        return [self._share[self._order[turn % len(self._share)]]]
