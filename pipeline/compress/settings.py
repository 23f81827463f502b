"""The settings of compress workers."""

from dataclasses import dataclass, field
from typing import Any, Literal

from codec.images.files import MAX_PIXELS

from ..running.worker import WorkerSettings
from ..sources.base import AUTOMATIC, Columns
from ..sources.samples import MAX_SAMPLE_BYTES
from .quality import TargetQuality

# A lost worker loses less than five minutes of work: on a CPU, up to three more are not saved yet.
SAVE_SECONDS = 120.0
StoreLayers = int | Literal["fit"] | None
KeepOriginal = Literal["never", "bad", "larger", "always"]


@dataclass(frozen=True)
class CompressSettings(WorkerSettings):
    """Settings of every worker. ``output`` is the dataset's URL.

    ``layers`` is the number of layer columns. ``store_layers`` says how many layers a picture
    stores: a number, "fit" (the most that are not larger than its file), or None: the fewest that
    reach ``target_quality``, or all without a target. With ``lossless`` a picture stores all
    layers, which are exact together. ``codec_options`` go to ``Codec.encode``. A sample of more
    than ``max_sample_bytes`` is bad, and only so many of its bytes are read. ``columns`` are those
    of Parquet files. Rows of a running shard are saved every ``save_seconds``.
    """

    output: str
    fingerprint: str
    model_id: str
    layers: int
    store_layers: StoreLayers = None
    lossless: bool = False
    codec_options: dict[str, Any] = field(default_factory=dict)
    min_side: int = 0
    max_pixels: int = MAX_PIXELS
    max_sample_bytes: int = MAX_SAMPLE_BYTES
    keep_original: KeepOriginal = "bad"
    target_quality: TargetQuality | None = None
    columns: Columns = AUTOMATIC
    save_seconds: float = SAVE_SECONDS
