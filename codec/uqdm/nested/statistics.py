"""What is counted on pictures: biases that a model starts from, and tables that it ends with.

Training fits a two-parameter family of distributions. Afterwards the frequencies of digits in each
cell (set, tilt index, width index) are counted on training pictures and replace the family's
probabilities where there are enough of them: what the network's two numbers really mean, whatever
it was told. 1 % fewer bits in most layers, 5 % in the first.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from ...stream.entropy import PRECISION, Tables
from .bands import to_bands
from .model import NestedModel
from .schedule import OUTPUTS
from .scheme import NestedScheme

PRIOR_WEIGHT = 100.0  # how many counts the family's own probabilities are worth
_BATCH = 16


@torch.no_grad()
def start_biases(model: NestedModel, pictures: Sequence[torch.Tensor]) -> None:
    """Set a new model's biases by pictures ``(B, 3, H, W) uint8``: the per-band baseline."""
    config = model.config
    coefficients = [to_bands(x, config) for x in pictures]
    for level in range(config.levels + 1):
        parts = [(*model.state_before(c, level), c) for c in coefficients]
        grid, k, c = (torch.cat([p[i].flatten(0, 2) for p in parts]) for i in range(3))
        # Where low bands are all over the place, a flat start beats a two-humped one.
        least = 0.05 if level == 0 else -1.5
        rows = model.bias[level - 1 : level] if level else model.first_bias[:-1]
        for kind in range(2):
            member = ((grid != 0) == bool(kind)).float()
            count = member.sum(0) + 4.0
            zero = ((k == 0).float() * member).sum(0) + 2.0
            odds = 2 * zero / (count - zero).clamp_min(0.25)
            rows[:, OUTPUTS["width"], kind] = odds.log().clamp(least, 10.0)
            if level:
                mean = ((c - grid) / config.unit(level - 1) * member).sum(0)
                shift = (mean / (member.sum(0) + 4.0)).clamp(-3.9, 3.9)
                rows[:, OUTPUTS["shift"], kind] = shift
    model.first_bias[-1] = model.bias[0]


def count_tables(scheme: NestedScheme, pictures: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The table arrays of a model file, ``tables.NAME.KEY``, counted on pictures.

    Args:
        scheme: the model with its family's tables.
        pictures: each ``(H, W, 3) uint8``.
    """
    counts = {name: np.zeros(len(t.counts)) for name, t in scheme.tables.items()}
    names = {id(tables): name for name, tables in scheme.tables.items()}
    for batch in _batches(pictures):
        for stream in scheme.encode(batch, [0] * len(batch), scheme.num_layers):
            for layer in stream:
                for symbols, index, tables in layer.parts():
                    entry, _ = tables.entries(symbols, index)
                    places = tables.start[index] + entry
                    np.add.at(counts[names[id(tables)]], places, 1.0)
    out: dict[str, np.ndarray] = {}
    for name, tables in scheme.tables.items():
        rows = counts[name].reshape(len(tables), -1)
        family = tables.counts.reshape(len(tables), -1) / 2.0**PRECISION
        pmf = rows + PRIOR_WEIGHT * family
        pmf /= pmf.sum(1, keepdims=True)
        counted = Tables.from_matrix(tables.first, pmf[:, :-1])
        out |= {f"tables.{name}.{key}": array for key, array in counted.to_arrays().items()}
    return out


def _batches(pictures: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Pictures of one size together, a few at a time."""
    sizes: dict[tuple[int, ...], list[np.ndarray]] = {}
    for picture in pictures:
        sizes.setdefault(picture.shape, []).append(picture)
    for members in sizes.values():
        for at in range(0, len(members), _BATCH):
            yield members[at : at + _BATCH]
