"""A sample of a corpus, encoded and judged in this process: the base of ``--dry-run``."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from codec import Codec, EncodedImage
from codec.errors import StrataError
from codec.images.metrics import psnr
from codec.images.perception import EXACT, can_judge, ssimulacra2

from ..dataset.rows import Row
from ..sources.base import Shard, ShardFile
from ..sources.samples import Sample
from ..sources.shards import open_shard
from .keeping import layers_to_encode
from .loading import load
from .quality import Measured, TargetQuality, shown_by_layers
from .sampling import middle
from .settings import CompressSettings

SHARDS, PICTURES = 4, 32  # that are looked into, and encoded
TOGETHER = 1 << 18  # pixels that are encoded together, and one picture more
LOWEST = 60.0  # SSIMULACRA2; layers below the first that has less are not judged
SECONDS = 60.0  # after this nothing else is begun


@dataclass(frozen=True)
class Look:
    """A stream with all layers worth having, and the quality after each of them.

    ``scores`` are SSIMULACRA2 of the picture's middle (None: not measured), ``psnr`` in dB.
    """

    stream: EncodedImage
    scores: tuple[float | None, ...]
    psnr: tuple[float, ...]

    def measured(self, target: TargetQuality | None) -> Measured | None:
        """What a worker would find, if the middle is as good as the whole."""
        if target is None:
            return None
        curve = self.psnr if target.decibels else self.scores
        reached = (n for n, one in enumerate(curve, 1) if one is not None and one >= target.value)
        return Measured(self.psnr, next(reached, None))


@dataclass
class Trial:
    """What was counted in the headers of some shards, and what was encoded of them.

    ``pictures`` are the rows, with their files, and their looks by the name of the model.
    ``encode_seconds`` and ``judge_seconds`` are those of the first model, and of pictures whose
    files have ``encoded_bytes``.
    """

    shards: int = 0
    shard_bytes: int = 0
    samples: int = 0
    picture_samples: int = 0
    picture_bytes: int = 0
    side_bytes: int = 0
    bad: int = 0
    encode_seconds: float = 0.0
    judge_seconds: float = 0.0
    encoded_bytes: int = 0
    side_samples: list[bytes] = field(default_factory=list)
    pictures: list[tuple[Row, dict[str, Look]]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def side_share(self) -> float:
        """What Parquet's compression leaves of side fields, 0 to 1."""
        contents = b"".join(self.side_samples)
        return len(pa.compress(contents, "zstd")) / len(contents) if contents else 1.0


def run_trial(
    shards: Sequence[Shard],
    settings: CompressSettings,
    models: Sequence[Codec],
    stop: Callable[[], str],
) -> Trial:
    """Look into some shards, evenly spread, as long as there is time, and encode some pictures.

    ``settings`` are those of the job, for the first of the ``models``.
    """
    trial, began = Trial(), time.monotonic()

    def time_is_up() -> bool:
        return bool(stop()) or (time.monotonic() - began > SECONDS and bool(trial.pictures))

    count = min(SHARDS, len(shards))
    for shard in (shards[number * len(shards) // count] for number in range(count)):
        if time_is_up():
            break
        with tempfile.TemporaryDirectory(dir=settings.scratch) as scratch:
            try:
                opened = open_shard(
                    shard, Path(scratch), settings.input_options, settings.gzip, settings.columns
                )
                with opened as file:
                    _count(trial, shard, file.samples)
                    for rows, images in _groups(file, settings, trial, PICTURES // count):
                        _encode(trial, rows, images, settings, models)
                        if time_is_up():
                            break
            except (StrataError, OSError) as error:
                trial.problems.append(str(error))
    return trial


def _count(trial: Trial, shard: Shard, samples: Sequence[Sample]) -> None:
    trial.shards += 1
    trial.shard_bytes += shard.size
    trial.samples += len(samples)
    for sample in samples:
        picture = sample.image_field
        if picture is None or sample.problem or sample.filtered:
            continue
        trial.picture_samples += 1
        sizes = {name: member.size for name, member in sample.fields}
        trial.picture_bytes += sizes.pop(picture)
        trial.side_bytes += sum(sizes.values())


def _groups(
    file: ShardFile, settings: CompressSettings, trial: Trial, most: int
) -> Iterator[tuple[list[Row], list[np.ndarray]]]:
    """At most so many pictures of a shard, evenly spread, in groups to encode together."""
    whole = [(n, one) for n, one in enumerate(file.samples) if one.image_field]
    count = min(most, len(whole))
    rows: list[Row] = []
    images: list[np.ndarray] = []
    for number in range(count):
        began = time.monotonic()
        loaded = load(settings, file, *whole[number * len(whole) // count])
        trial.encode_seconds += time.monotonic() - began
        trial.bad += loaded.row.status == "bad"
        if loaded.rgb is not None:
            rows.append(loaded.row)
            images.append(loaded.rgb)
        if images and (sum(one[..., 0].size for one in images) >= TOGETHER or number == count - 1):
            yield rows, images
            rows, images = [], []
    if images:
        yield rows, images


def _encode(
    trial: Trial,
    rows: Sequence[Row],
    images: Sequence[np.ndarray],
    settings: CompressSettings,
    models: Sequence[Codec],
) -> None:
    first, *others = models
    layers = max(layers_to_encode(settings, row) for row in rows)
    began = time.monotonic()
    streams = first.encode(images, layers=layers, **settings.codec_options)
    trial.encode_seconds += time.monotonic() - began
    trial.encoded_bytes += sum(row.source_bytes or 0 for row in rows)
    if layers < first.archive_layers:
        streams = first.encode(images, layers=first.archive_layers, **settings.codec_options)
    began = time.monotonic()
    target = settings.target_quality
    lowest = LOWEST if target is None or target.decibels else min(LOWEST, target.value)
    looks = {first.name: _looks(first, streams, images, layers, lowest)}
    trial.judge_seconds += time.monotonic() - began
    for other in others:
        some = other.encode(images, layers=other.archive_layers)
        looks[other.name] = _looks(other, some, images, other.archive_layers, EXACT)
    trial.side_samples += [data for row in rows for _, data in row.fields if data is not None]
    trial.pictures += [
        (row, {name: of_model[number] for name, of_model in looks.items()})
        for number, row in enumerate(rows)
    ]


def _looks(
    model: Codec,
    streams: Sequence[EncodedImage],
    images: Sequence[np.ndarray],
    layers: int,
    lowest: float,
) -> list[Look]:
    return [
        Look(
            stream,
            _scores(image, shown, layers, lowest),
            tuple(psnr(image, one) for one in shown),
        )
        for stream, image, shown in zip(
            streams, images, shown_by_layers(model, streams), strict=True
        )
    ]


def _scores(
    image: np.ndarray, shown: Sequence[np.ndarray], layers: int, lowest: float
) -> tuple[float | None, ...]:
    """Of the last layer and those before it, down to one below ``lowest``, and after ``layers``."""
    scores: list[float | None] = [None] * len(shown)
    for number in reversed(range(len(shown))):
        scores[number] = score = _score(image, shown[number])
        if score is None or score < lowest:
            break
    if layers <= len(shown) and scores[layers - 1] is None:
        scores[layers - 1] = _score(image, shown[layers - 1])
    return tuple(scores)


def _score(image: np.ndarray, shown: np.ndarray) -> float | None:
    if np.array_equal(image, shown):
        return EXACT
    return ssimulacra2(middle(image), middle(shown)) if can_judge() else None
