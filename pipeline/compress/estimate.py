"""Estimates size, quality and time of compressing a corpus (``--dry-run``) from a sample.

All shards are listed with their sizes. In some of them, spread evenly, the samples are counted in
the tars' headers, and some pictures are encoded in this process. The rest is extrapolated by the
bytes of pictures. Nothing is written to the output.
"""

import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from codec import Codec, load_codec
from codec.images.packing import can_pack
from codec.images.perception import EXACT, can_judge
from codec.models.zoo import DEFAULT_MODELS

from ..dataset.kept_files import KEPT
from ..running import cluster
from ..running.progress.display import duration
from ..running.progress.summary import Summary, plural, share, size
from ..stores.urls import refuse_secrets
from .job import CompressOptions, inputs_of, planned_parameters, settings_of
from .keeping import PREVIEW_LAYERS, finished_row, layers_to_encode
from .quality import target_quality
from .settings import CompressSettings
from .trial import Trial, run_trial

# Bytes of Parquet and index for each picture, in addition to pictures and fields.
ROW_BYTES, FILE_BYTES = 200, 10_000
OTHER_QUALITIES = ("80", "70", "60")


@dataclass(frozen=True)
class Choice:
    """The result of some options: bytes of the archive, and the quality of the sample.

    ``exact`` is the share of pictures that come back exactly (0 to 1). ``worst`` and ``median`` are
    SSIMULACRA2 over the sample, or PSNR in dB if SSIMULACRA2 is not installed; None if all pictures
    are exact.
    """

    name: str
    archive_bytes: int
    exact: float
    worst: float | None
    median: float | None


@dataclass
class Estimate(Summary):
    """The estimate. Pictures, bytes and seconds are extrapolated to the whole corpus.

    The first of the ``choices`` has the given options.
    """

    input_bytes: int = 0
    pictures: int = 0
    sampled: int = 0
    sampled_shards: int = 0
    measure: str = "SSIMULACRA2"
    workers: int = 0
    worker_cpus: float = 0.0
    worker_seconds: float = 0.0
    choices: list[Choice] = field(default_factory=list)

    def lines(self) -> list[str]:
        lines = [
            "dry run: nothing is written; all but the inputs is extrapolated",
            f"inputs:      {plural(self.shards, 'shard')}, {size(self.input_bytes)}, "
            f"about {plural(self.pictures, 'picture')}",
            f"sample:      {plural(self.sampled, 'picture')} of "
            f"{plural(self.sampled_shards, 'shard')}; {self.bad} bad",
        ]
        if self.choices:
            archive = self.choices[0].archive_bytes
            seconds = self.worker_seconds / max(1, self.workers)
            lines += [
                f"archive:     about {size(archive)}, {self._share(archive)} of the inputs",
                f"time:        about {duration(seconds)} with {plural(self.workers, 'worker')} "
                "as fast as here",
                f"work:        {self._work()}",
                "",
                f"{'what could be had':34}{'archive':>9}{'':8}{'exact':>6}  {self.measure}",
                f"{'':59}{'worst':>6} {'median':>7}",
                *map(self._line, self.choices),
            ]
        return [*lines, *self.notes, *([f"stopped: {self.stopped}"] if self.stopped else [])]

    def to_json(self) -> dict[str, Any]:
        return super().to_json() | {"choices": [asdict(choice) for choice in self.choices]}

    def _work(self) -> str:
        hours = self.worker_seconds / 3600
        return (
            f"{hours:,.1f} worker hours" if hours >= 2 else f"{duration(3600 * hours)} of a worker"
        )

    def _line(self, choice: Choice) -> str:
        figures = [
            "exact" if one is None else f"{one:.1f}" for one in (choice.worst, choice.median)
        ]
        nbytes = choice.archive_bytes
        return (
            f"{choice.name:34}{size(nbytes):>9} {self._share(nbytes):>6}"
            f" {100 * choice.exact:4.0f} %  {figures[0]:>6} {figures[1]:>7}"
        )

    def _share(self, archive_bytes: int) -> str:
        return share(archive_bytes, self.input_bytes, 0)


def estimate(options: CompressOptions, stop: Callable[[], str] = lambda: "") -> Estimate:
    """Estimate the job with these ``options``. Takes a minute or two.

    Raises StrataError if the job could not start.
    """
    refuse_secrets(*options.inputs, options.model)
    inputs = inputs_of(options)
    for line in inputs.lines():
        print(line, file=sys.stderr, flush=True)
    shards = inputs.as_shards()
    import torch  # after the checks that need no torch

    cluster.connect(options.address)
    shape = cluster.share(options.workers, options.device, len(shards), options.worker_cpus)
    device = shape.device if shape.device == "cpu" or torch.cuda.is_available() else "cpu"
    model = load_codec(options.model, device=device)
    settings = replace(
        settings_of(planned_parameters(options, model), options.codec_options),
        threads=shape.threads,
        device=device,
        scratch=options.scratch,
        input_options=options.input_options,
        gzip=options.gzip,
    )
    others = [] if model.codec == "cdc" else [load_codec(DEFAULT_MODELS["cdc"], device=device)]
    with _threads(shape.threads):
        trial = run_trial(shards, settings, [model, *others], stop)
    found = Estimate(
        "estimated",
        shards=len(shards),
        bad=trial.bad,
        input_bytes=sum(shard.size for shard in shards),
        sampled=len(trial.pictures),
        sampled_shards=trial.shards,
        workers=shape.workers,
        worker_cpus=shape.cpus,
        stopped=stop(),
    )
    found.notes += [f"warning: {problem}" for problem in trial.problems]
    if not can_pack():
        found.notes.append("JPEG files count as they are: lepton_jpeg_python is not installed")
    if device != shape.device:
        found.notes.append("warning: this machine has no GPU, so the time is that of a CPU")
    if not trial.pictures:
        found.notes.append("warning: the sampled shards have no picture")
        return found
    scale = found.input_bytes / trial.shard_bytes
    found.pictures = round(trial.picture_samples * scale)
    seconds = trial.encode_seconds
    if settings.target_quality is not None:
        seconds += trial.judge_seconds
    found.worker_seconds = seconds / trial.encoded_bytes * trial.picture_bytes * scale
    if not can_judge():
        found.measure = "PSNR, dB"
    found.choices = _choices(found, trial, settings, model, others)
    return found


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """As many threads of torch as a worker would have."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _choices(
    found: Estimate,
    trial: Trial,
    settings: CompressSettings,
    model: Codec,
    others: Sequence[Codec],
) -> list[Choice]:
    default = replace(
        settings,
        layers=model.archive_layers,
        store_layers=model.archive_layers,
        lossless=False,
        keep_original="larger",
        target_quality=None,
    )
    named = {
        "these options": (settings, model),
        "files byte for byte, and previews": (
            replace(default, keep_original="always", store_layers=PREVIEW_LAYERS),
            model,
        ),
        "no options: visually lossless": (default, model),
    }
    for quality in OTHER_QUALITIES if can_judge() else ():
        wanted = replace(default, store_layers=None, target_quality=target_quality(quality))
        named[f"--target-quality {quality}"] = (wanted, model)
    for other in others:
        chosen = replace(default, layers=other.archive_layers, store_layers=other.archive_layers)
        named[f"--codec {other.codec}"] = (chosen, other)
    return [
        _choice(name, chosen, by, found, trial)
        for name, (chosen, by) in named.items()
        if chosen is settings or chosen != settings
    ]


def _choice(
    name: str, settings: CompressSettings, model: Codec, found: Estimate, trial: Trial
) -> Choice:
    stored = before = 0
    qualities: list[float] = []
    for row, looks in trial.pictures:
        look = looks[model.name]
        stream = look.stream.truncate(layers_to_encode(settings, row))
        done = finished_row(settings, row, stream, look.measured(settings.target_quality))
        assert done.encoded is not None
        before += row.source_bytes or 0
        stored += done.encoded.nbytes + len(done.alpha or b"") + len(done.original or b"")
        last = done.encoded.num_layers - 1
        score = look.scores[last] if can_judge() else look.psnr[last]
        exact = EXACT if can_judge() else float("inf")
        qualities.append(exact if done.reason in KEPT or score is None else score)
    scale = found.input_bytes / trial.shard_bytes
    archive = scale * (stored / before * trial.picture_bytes + trial.side_share * trial.side_bytes)
    archive += scale * trial.samples * ROW_BYTES + found.shards * FILE_BYTES
    exact = EXACT if can_judge() else float("inf")
    figures = (min(qualities), statistics.median_low(qualities))
    worst, median = (None if one >= exact else one for one in figures)
    share = sum(one >= exact for one in qualities) / len(qualities)
    return Choice(name, round(archive), share, worst, median)
