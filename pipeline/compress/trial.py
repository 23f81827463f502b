"""Encodes and judges a sample of a corpus in this process, for ``--dry-run``."""

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

SHARDS, PICTURES = 4, 32  # shards that are opened, pictures that are encoded
TOGETHER = 1 << 18  # so many pixels, plus one picture, are encoded together
LOWEST = 60.0  # SSIMULACRA2; once a layer is below it, earlier layers are not judged
SECONDS = 60.0  # after this time no further picture is encoded


@dataclass(frozen=True)
class Look:
    """A stream and its quality after each layer.

    ``scores`` are SSIMULACRA2 of the picture's middle (None: not measured); ``psnr`` is in dB.
    """

    stream: EncodedImage
    scores: tuple[float | None, ...]
    psnr: tuple[float, ...]

    def measured(self, target: TargetQuality | None) -> Measured | None:
        """The judgement of a worker, if the whole picture is as good as its middle."""
        if target is None:
            return None
        curve = self.psnr if target.decibels else self.scores
        reached = (n for n, one in enumerate(curve, 1) if one is not None and one >= target.value)
        return Measured(self.psnr, next(reached, None))


@dataclass
class Trial:
    """Counts from the headers of some shards, and encoded pictures.

    ``pictures`` are the rows with their files, and their quality by the name of the model.
    ``encode_seconds`` and ``judge_seconds`` are the first model's, for pictures whose files have
    ``encoded_bytes``.
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
        """The size of side fields after Parquet's compression, as a share (0 to 1)."""
        contents = b"".join(self.side_samples)
        return len(pa.compress(contents, "zstd")) / len(contents) if contents else 1.0


def run_trial(
    shards: Sequence[Shard],
    settings: CompressSettings,
    models: Sequence[Codec],
    stop: Callable[[], str],
) -> Trial:
    """Open some shards, spread evenly, and encode some of their pictures, as long as there is time.

    ``settings`` are the job's; the first of the ``models`` uses them.
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
    """Some pictures of a shard, spread evenly, in groups to encode together."""
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
    """The scores of the last layer and of those before it, down to one below ``lowest``; and of
    ``layers``.
    """
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
