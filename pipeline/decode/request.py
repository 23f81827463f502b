"""The options of a decode job, and what they select in a dataset."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from codec.images.files import DEFAULT_QUALITY

from ..reader.dataset import DataFile, Dataset, open_dataset
from ..running.job import RunningOptions
from ..running.options import OptionError, check_codec_options
from ..running.outputs import refuse_output
from ..running.progress.summary import LOGGED, Summary, plural
from ..stores.store import Store, storage_errors
from .filter_language import parse_condition
from .key_list import chosen_keys, find_keys, keys_sha256, listed
from .layer_rule import LayerRule, layer_rule


@dataclass(frozen=True)
class DecodeOptions(RunningOptions):
    """See ``strata decode --help``.

    At most one of ``layers``, ``target_bpp`` (bits per pixel), ``max_bytes`` and ``min_psnr`` (dB)
    may be given; without them all layers are taken. ``keys``, or those in ``keys_file`` (a URL, or
    ``-`` for standard input), select samples. ``max_side`` is in pixels. Pictures above
    ``max_pixels`` are bad. ``codec_options`` are the given options of the codec for decoding.
    ``image_format`` and ``image_quality`` (1 to 100, or ``"lossless"`` for webp; None: the format's
    default) have no effect with the formats ``strata`` and ``originals``, which decode nothing.
    """

    dataset: str
    output: str
    layers: int | None = None
    format: Literal["webdataset", "files", "parquet", "originals", "strata"] = "webdataset"
    image_format: str = "png"
    codec_options: dict[str, Any] = field(default_factory=dict)
    image_quality: int | Literal["lossless"] | None = None
    target_bpp: float | None = None
    max_bytes: int | None = None
    min_psnr: float | None = None
    keys: tuple[str, ...] = ()
    keys_file: str | None = None
    ignore_missing: bool = False
    filter: str | None = None
    max_side: int | None = None
    max_pixels: int | None = None
    side_pictures: bool = False
    keep_original: bool = False
    max_bad_fraction: float = 0.5

    @property
    def includes_side_pictures(self) -> bool:
        """Whether pictures among the side fields are written: by default only if nothing limits
        quality or size.
        """
        limits = (self.layers, self.target_bpp, self.max_bytes, self.min_psnr, self.max_side)
        return self.side_pictures or all(limit is None for limit in limits)


@dataclass(frozen=True)
class Request:
    """What the options select: data files with keys (None: all rows), a condition, a layer rule.

    ``parameters`` are those for the plan. ``unknown`` are keys that the dataset does not have.
    """

    dataset: Dataset
    files: list[tuple[DataFile, tuple[str, ...] | None]]
    rule: LayerRule
    condition: str
    parameters: dict[str, Any]
    unknown: list[str]


@dataclass
class DecodeSummary(Summary):
    """``missing`` keys are not in the dataset; ``missing_keys`` are the first hundred of them.

    If rows are ``copied``, bad rows of the dataset are bad in the copy, and do not count as
    failures.
    """

    copied: bool = False
    missing: int = 0
    missing_keys: list[str] = field(default_factory=list)
    ignore_missing: bool = False

    @property
    def exit_code(self) -> int:
        failed = self.failed_shards or self.stopped or (self.bad and not self.copied)
        return 1 if failed or (self.missing and not self.ignore_missing) else 0


def resolve(options: DecodeOptions) -> Request:
    """Check the options against each other and the dataset, and find the keys in it.

    Raises OptionError, DatasetError, StorageError.
    """
    _check(options)
    condition = parse_condition(options.filter).text if options.filter is not None else ""
    dataset = open_dataset(options.dataset, options.input_options)
    refuse_output(Store(options.output, options.output_options), [dataset.store])
    rule = layer_rule(
        dataset, options.layers, options.target_bpp, options.max_bytes, options.min_psnr
    )
    if options.codec_options:
        check_codec_options(dataset.codec(), "decode", options.codec_options, dataset.url)
    # Absent if not given, so that a plan depends only on the options that were given.
    parameters: dict[str, Any] = {"filter": condition} if condition else {}
    files: list[tuple[DataFile, tuple[str, ...] | None]] = [(one, None) for one in dataset.files]
    unknown: list[str] = []
    if keys := chosen_keys(options.keys, options.keys_file, options.input_options):
        parameters["keys_sha256"] = keys_sha256(keys)
        with storage_errors(dataset.url, "its keys cannot be read"):
            chosen, unknown = find_keys(dataset, keys)
        files = [*chosen]
    return Request(dataset, files, rule, condition, parameters, unknown)


def _check(options: DecodeOptions) -> None:
    written_quality(options)
    if options.format in ("strata", "originals"):
        limits = {"--max-side": options.max_side, "--max-pixels": options.max_pixels}
        layers = {
            "--layers": options.layers,
            "--target-bpp": options.target_bpp,
            "--max-bytes": options.max_bytes,
            "--min-psnr": options.min_psnr,
        }
        unread = layers if options.format == "originals" else {}
        decoding = {**unread, **limits, **options.codec_options}
        given = [
            name if name.startswith("--") else "--" + name.replace("_", "-")
            for name, value in decoding.items()
            if value is not None
        ]
        if given:
            raise OptionError(f"{', '.join(given)}: --format {options.format} decodes nothing")
        if options.side_pictures:
            raise OptionError(f"--side-pictures: --format {options.format} copies all side fields")
    if options.keep_original and options.format != "strata":
        raise OptionError("--keep-original: only --format strata keeps files of pictures")
    for name, limit in (("--max-side", options.max_side), ("--max-pixels", options.max_pixels)):
        if limit is not None and limit < 1:
            raise OptionError(f"{name} {limit}: must be at least 1")


def written_quality(options: DecodeOptions) -> int | None:
    """The quality with which pictures are written, 1 to 100; None is lossless.

    Raises OptionError for a quality that the format does not have.
    """
    format, quality = options.image_format, options.image_quality
    if quality is None:
        return DEFAULT_QUALITY.get(format)
    if quality == "lossless":
        if format in ("png", "webp"):
            return None
        raise OptionError(f"--image-quality lossless: {format} is lossy; choose png or webp")
    if format == "png":
        raise OptionError(f"--image-quality {quality}: png is always lossless")
    if not 1 <= quality <= 100:
        raise OptionError(f"--image-quality must be 1 to 100 or lossless, not {quality}")
    return quality


def begin_summary(verb: str, request: Request, options: DecodeOptions) -> DecodeSummary:
    """A summary with the keys that are not in the dataset."""
    unknown: Sequence[str] = request.unknown
    summary = DecodeSummary(
        verb,
        shards=len(request.files),
        missing=len(unknown),
        missing_keys=list(unknown[:LOGGED]),
        ignore_missing=options.ignore_missing,
    )
    if unknown:
        summary.notes.append(f"{plural(len(unknown), 'key')} not in the archive: {listed(unknown)}")
    return summary


def note_above_limit(summary: Summary, totals: Mapping[str, int]) -> None:
    """Warn of pictures that are larger than ``--target-bpp`` or ``--max-bytes``."""
    if above := totals["above_limit"]:
        summary.notes.append(
            f"warning: {plural(above, 'picture')} above the limit: the first layer alone is larger"
        )
