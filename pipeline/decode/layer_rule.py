"""Chooses how many layers of each picture to take, from its metadata."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from math import inf
from typing import Any, NamedTuple

from ..dataset.rows import layer_column, stream_columns
from ..reader.dataset import Dataset
from ..running.options import OptionError

_SIZES = ("status", "layers", "cumulative_bytes", "width", "height")


class LayerChoice(NamedTuple):
    """What to take of a row: its first ``layers`` layers, or its original if that is kept.

    ``above_limit``: even these layers have more bytes than the rule allows.
    """

    layers: int
    original: bool = False
    above_limit: bool = False


@dataclass(frozen=True)
class LayerRule:
    """One of four ways to choose a number of layers, out of ``stored`` layer columns.

    ``layers``: the same number for every picture. ``target_bpp`` (bits per pixel) or ``max_bytes``:
    the most layers that fit together with the header, and at least one. ``min_psnr`` (dB): the
    fewest that reach it, or else all. If a picture stores fewer layers than the rule wants or
    allows and its original is kept, the original is taken, but for a limit only if it fits: so no
    picture is worse because its file was smaller than its stream.
    """

    stored: int
    layers: int | None = None
    target_bpp: float | None = None
    max_bytes: int | None = None
    min_psnr: float | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the choice depends on."""
        if self.layers is not None:
            return ()
        return (*_SIZES, "source_bytes" if self.min_psnr is None else "psnr")

    @property
    def most(self) -> int:
        """The most layers that any picture needs."""
        return self.stored if self.layers is None else self.layers

    def choose(self, row: Mapping[str, Any]) -> LayerChoice:
        """What to take of an ok row, which has ``columns`` and ``layers``."""
        if self.layers is not None:
            return LayerChoice(self.layers, row["layers"] < self.layers)
        if self.min_psnr is not None:
            reached = (n for n, one in enumerate(row["psnr"] or (), 1) if one >= self.min_psnr)
            layers = next(reached, None)
            return LayerChoice(row["layers"], True) if layers is None else LayerChoice(layers)
        limit = float(self.max_bytes or 0)
        if self.target_bpp is not None:
            limit = self.target_bpp * row["width"] * row["height"] / 8
        fitting = len(list(takewhile(lambda size: size <= limit, row["cumulative_bytes"])))
        fits = (row["source_bytes"] or inf) <= limit
        return LayerChoice(
            max(1, fitting), fits and row["layers"] < self.stored, above_limit=not fitting
        )

    def to_json(self) -> dict[str, Any]:
        """The options that were given, for plans."""
        names = ("layers", "target_bpp", "max_bytes", "min_psnr")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def layer_rule(
    dataset: Dataset,
    layers: int | None = None,
    target_bpp: float | None = None,
    max_bytes: int | None = None,
    min_psnr: float | None = None,
) -> LayerRule:
    """The rule for a dataset; all layers if no option is given.

    Raises OptionError for more than one option, and for one that does not suit the dataset.
    """
    given = {
        "--layers": layers,
        "--target-bpp": target_bpp,
        "--max-bytes": max_bytes,
        "--min-psnr": min_psnr,
    }
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) > 1:
        raise OptionError(f"{' and '.join(chosen)}: give only one of them")
    stored = dataset.num_layers
    if layers is not None and not 1 <= layers <= stored:
        raise OptionError(f"--layers {layers}: {dataset.url} stores {stored} layers")
    if min_psnr is not None and dataset.parameters.get("target_quality") is None:
        raise OptionError(
            f"--min-psnr {min_psnr:g}: {dataset.url} does not store the PSNR of its layers, "
            "because it was compressed without --target-quality: use --layers, --target-bpp or "
            "--max-bytes"
        )
    if not chosen:
        layers = stored
    return LayerRule(stored, layers, target_bpp, max_bytes, min_psnr)


def cut(row: Mapping[str, Any], layers: int, columns: int) -> dict[str, Any]:
    """A row with only its first ``layers`` layers, for a file with ``columns`` layer columns."""
    names = [*(name for name in row if not name.startswith("layer_")), *stream_columns(columns)]
    whole = {name: row.get(name) for name in names}
    for number in range(layers, columns):
        whole[layer_column(number)] = None
    return whole | {
        "layers": min(row["layers"], layers),
        "cumulative_bytes": row["cumulative_bytes"] and row["cumulative_bytes"][:layers],
        "psnr": row["psnr"] and row["psnr"][:layers],
    }
