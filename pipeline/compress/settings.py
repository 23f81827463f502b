"""What every worker of a job that compresses is told."""

from dataclasses import dataclass, field
from typing import Any, Literal

from codec.images.files import MAX_PIXELS

from ..running.worker import WorkerSettings
from ..sources.base import AUTOMATIC, Columns
from ..sources.samples import MAX_SAMPLE_BYTES

# A lost worker costs less than five minutes: on a CPU up to three more are under way.
SAVE_SECONDS = 120.0
KeepOriginal = Literal["never", "bad", "larger", "always"]


@dataclass(frozen=True)
class CompressSettings(WorkerSettings):
    """Settings of every compressing worker. ``output`` is the dataset's URL.

    ``layers`` is the number of layer columns; with ``fit`` each picture stores the most of them
    that are not larger than its file, otherwise all. ``codec_options`` go to ``Codec.encode``.
    Of a sample of more than ``max_sample_bytes``, which is bad, only as many are read.
    ``min_psnr`` (dB): where a stream stays below it, ``keep_original="larger"`` keeps the original.
    ``columns`` are those of Parquet files. Rows of a shard under way are saved every
    ``save_seconds``.
    """

    output: str
    fingerprint: str
    model_id: str
    layers: int
    fit: bool
    codec_options: dict[str, Any] = field(default_factory=dict)
    min_side: int = 0
    max_pixels: int = MAX_PIXELS
    max_sample_bytes: int = MAX_SAMPLE_BYTES
    keep_original: KeepOriginal = "bad"
    min_psnr: float | None = None
    columns: Columns = AUTOMATIC
    save_seconds: float = SAVE_SECONDS
