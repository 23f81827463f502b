"""UQDM as a ``Codec``: a ``LayeredCodec`` around one of two quantisers.

The configuration in the model file tells them apart: ``quantizer: universal`` in ``domain: pixels``
(the paper's), ``quantizer: nested`` in ``domain: bands`` (ours).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..base import Purpose
from ..errors import InvalidModelError
from ..layered import LayeredCodec
from ..numerics.precision import full_precision
from .nested.scheme import NestedScheme
from .paper.scheme import UniversalScheme
from .scheme import REALISMS

SCHEMES: dict[tuple[str, str], type[NestedScheme | UniversalScheme]] = {
    ("nested", "bands"): NestedScheme,
    ("universal", "pixels"): UniversalScheme,
}


class UQDMCodec(LayeredCodec):
    """A UQDM model on one device.

    Decoding with ``realism="denoise"`` (the default) gives the best PSNR; ``"flow"`` gives up some
    of it for likely detail.
    """

    codec = "uqdm"
    lossless = True
    decode_options = frozenset({"realism"})
    scheme: NestedScheme | UniversalScheme

    def check_options(self, purpose: Purpose, options: Mapping[str, Any]) -> None:
        """See ``Codec.check_options``."""
        super().check_options(purpose, options)
        realism = options.get("realism", "denoise")
        if realism not in REALISMS:
            raise ValueError(f"realism must be one of {REALISMS}, got {realism!r}")

    def _reconstruct_small(
        self, state: Any, layers: int, size: tuple[int, int], **options: Any
    ) -> list[np.ndarray]:
        if isinstance(self.scheme, NestedScheme):
            return self.scheme.reconstruct_small(state, layers, size, **options)
        return super()._reconstruct_small(state, layers, size, **options)

    def sample(self, height: int, width: int, count: int = 1, *, seed: int = 0) -> list[np.ndarray]:
        """Unconditional samples of the model, ``(height, width, 3) uint8`` each."""
        with full_precision(self.device):
            return self.scheme.sample(height, width, count, seed=seed)


def load(
    name: str,
    path: Path,
    model_id: str,
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    device: str,
) -> UQDMCodec:
    """Make a codec of a model file's content. Raises InvalidModelError."""
    kind = (config.get("quantizer"), config.get("domain"))
    if kind not in SCHEMES:
        known = ", ".join("/".join(k) for k in SCHEMES)
        raise InvalidModelError(f"model {name}: no such quantizer/domain {kind}; have {known}")
    scheme = SCHEMES[kind](config, tensors, device)
    codec = UQDMCodec(name, model_id, path, config, scheme, device)
    codec.lossless = not isinstance(scheme, NestedScheme) or scheme.lossless
    return codec
