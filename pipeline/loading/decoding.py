"""Decodes samples in batches on one device."""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from codec import Codec, CorruptStreamError, EncodedImage
from codec.batches import one_by_one_on_error
from codec.errors import BrokenImageError, UnsupportedImageError
from codec.images.resizing import fit

from ..dataset.captions import whole_caption_of
from ..dataset.data_file import DamagedDataError
from ..dataset.rows import RecordError
from ..reader.originals import KeptOriginal, read_original, stream_or_original
from ..stores.reasons import describe

Sample = dict[str, Any]
Transform = Callable[[Tensor], Any]
# What to do with a picture that cannot be read or decoded.
Errors = Literal["raise", "skip"] | Callable[[str, Exception], object]

# Errors of one picture. Other errors (a store that does not answer, a device that fails, a bug in a
# transform) would occur again with the next picture, so they are always raised.
_OF_ONE_PICTURE = (
    *(CorruptStreamError, DamagedDataError, RecordError),
    *(BrokenImageError, UnsupportedImageError),
)
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}")
_log = logging.getLogger(__name__)


class ErrorPolicy:
    """Raises or reports errors, as ``errors`` says. See ``StrataImages``."""

    def __init__(self, errors: Errors) -> None:
        if not callable(errors) and errors not in ("raise", "skip"):
            raise ValueError(f"errors must be 'raise', 'skip' or a function, not {errors!r}")
        self.errors = errors
        self._last: Exception | None = None  # all rows of a damaged row group share one error

    def handle(self, key: str | None, error: Exception) -> None:
        """Report ``error`` if it concerns one picture and such are skipped; otherwise raise it."""
        if self.errors == "raise" or not isinstance(error, _OF_ONE_PICTURE):
            raise error
        if callable(self.errors):
            self.errors(key or "", error)
        elif error is not self._last:
            _log.warning("skipped %r: %s", key, error)
        self._last = error


@dataclass(frozen=True)
class Decoder:
    """Decodes streams to tensors on ``device``.

    ``max_side`` (pixels) makes previews (``Codec.decode_small``). ``options`` go to
    ``Codec.decode``.
    """

    codec: Codec
    device: str = "cpu"
    max_side: int | None = None
    transform: Transform | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.codec.check_options("decode", self.options)

    def arrays(
        self, encoded: Sequence[EncodedImage | KeptOriginal], keys: Sequence[str]
    ) -> list[np.ndarray | Exception]:
        """The pictures, ``(H, W, 3) uint8``, or the errors of those that cannot be decoded."""
        found: list[Any] = [None] * len(encoded)
        streams = [n for n, one in enumerate(encoded) if isinstance(one, EncodedImage)]
        if streams:
            batch = [one for one in encoded if isinstance(one, EncodedImage)]
            for n, picture in zip(streams, one_by_one_on_error(self._decode, batch), strict=True):
                found[n] = picture
        for n, one in enumerate(encoded):
            if isinstance(one, KeptOriginal):
                found[n] = self._read(one)
        return [
            _named(str(key), one) if isinstance(one, Exception) else one
            for key, one in zip(keys, found, strict=True)
        ]

    def samples(self, samples: Sequence[Sample]) -> list[Sample | Exception]:
        """Each sample with ``image`` in place of ``encoded``, or the error of its picture."""
        pictures = self.arrays(
            [sample["encoded"] for sample in samples], [sample["key"] for sample in samples]
        )
        return [
            picture if isinstance(picture, Exception) else self._finished(sample, picture)
            for sample, picture in zip(samples, pictures, strict=True)
        ]

    def size(self, encoded: EncodedImage | KeptOriginal) -> tuple[int, int]:
        """Height and width of the picture before ``transform``."""
        size = (encoded.height, encoded.width)
        return size if self.max_side is None else fit(*size, self.max_side)

    def _decode(self, batch: list[EncodedImage]) -> Sequence[np.ndarray]:
        if self.max_side is None:
            return self.codec.decode(batch, **self.options)
        return self.codec.decode_small(batch, max_side=self.max_side, **self.options)

    def _read(self, kept: KeptOriginal) -> np.ndarray | Exception:
        try:
            return read_original(kept.data, kept.width * kept.height, self.max_side).rgb
        except (BrokenImageError, UnsupportedImageError) as error:
            return error

    def _finished(self, sample: Sample, picture: np.ndarray) -> Sample:
        image = torch.from_numpy(np.require(picture, requirements=["C", "W"])).to(self.device)
        made = image if self.transform is None else self.transform(image)
        rest = {name: value for name, value in sample.items() if name not in ("key", "encoded")}
        return {"key": sample["key"], "image": made, **rest}


def decode_batches(
    batches: Iterable[Sequence[Sample]],
    codec: Codec,
    *,
    device: str | None = None,
    max_side: int | None = None,
    transform: Transform | None = None,
    decode_options: Mapping[str, Any] | None = None,
    errors: Errors = "raise",
) -> Iterator[Sample]:
    """Decode the batches of ``StrataImages(..., encoded=True)`` in this process, on a device.

    Yields one batch for each list of samples, in order and without reading ahead: a dictionary of
    ``key`` (a list), ``image`` (``(B, H, W, 3) uint8`` on ``device``, or a list of tensors if their
    shapes differ) and a list for each further column. ``codec`` is for example
    ``open_dataset(url).codec("cuda")``; ``device`` defaults to the codec's. The other arguments are
    those of ``StrataImages``. Skipped pictures are missing from their batch, and empty batches are
    left out.
    """
    policy = ErrorPolicy(errors)
    device = device or str(getattr(codec, "device", "cpu"))
    decoder = Decoder(codec, device, max_side, transform, decode_options or {})
    for batch in batches:
        done = []
        for sample, made in zip(batch, decoder.samples(batch), strict=True):
            if isinstance(made, Exception):
                policy.handle(sample["key"], made)
            else:
                done.append(made)
        if done:
            yield collate(done)


def collate(samples: Sequence[Sample]) -> Sample:
    """One dictionary of lists; images of one shape become one tensor."""
    batch = {name: [sample[name] for sample in samples] for name in samples[0]}
    images = batch["image"]
    if all(isinstance(image, Tensor) and image.shape == images[0].shape for image in images):
        return batch | {"image": torch.stack(images)}
    return batch


def to_samples(
    table: pa.Table, layers: int, columns: Sequence[str], url: str, fields: Sequence[str] = ()
) -> list[Sample]:
    """The rows of ``read_pictures`` as dictionaries of ``key``, ``encoded`` and ``columns``.

    ``fields`` among the columns becomes a dictionary of bytes by name, without the picture's own.
    Each name in ``fields`` is a side field (its bytes), ``caption`` or ``label``; None if the
    picture has none.
    """
    samples = []
    for row in table.to_pylist():
        sample = {"key": row["key"], "encoded": stream_or_original(row, layers, url)}
        sample |= {name: row[name] for name in columns}
        if "fields" in columns:
            sample["fields"] = {
                one["name"]: one["data"] for one in row["fields"] if one["data"] is not None
            }
        if fields:
            sample |= _of_fields(row["fields"], fields)
        samples.append(sample)
    return samples


def _of_fields(found: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Sample:
    """A picture's side fields, caption and label, by the names that ``StrataImages`` takes."""
    values: Sample = {one["name"]: one["data"] for one in found}
    caption, label = whole_caption_of(found)
    values |= {"caption": caption, "label": label}
    if label is not None and _WHOLE_NUMBER.fullmatch(label):
        values["label"] = int(label)
    return {name: values.get(name) for name in names}


def _named(key: str, error: Exception) -> Exception:
    """An error of one picture with its key in the message; other errors as they are."""
    if not isinstance(error, _OF_ONE_PICTURE):
        return error
    named = DamagedDataError(
        f"{key!r} cannot be decoded: {describe(error)}", key, getattr(error, "layer", None)
    )
    named.__cause__ = error
    return named
