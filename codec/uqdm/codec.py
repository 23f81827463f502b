"""UQDM as a ``Codec``: a ``LayeredCodec`` around one of two quantisers.

The configuration in the model file chooses: ``quantizer: universal`` in ``domain: pixels`` is the
paper's, ``quantizer: nested`` in ``domain: bands`` is ours.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..base import Purpose
from ..errors import InvalidModelError
from ..layered import LayeredCodec
from ..models.heads import head_files, read_head
from ..models.zoo import model_id as sha256_of
from ..numerics.precision import full_precision
from .nested.scheme import NestedScheme
from .paper.scheme import UniversalScheme
from .scheme import FLOW, MEAN

SCHEMES: dict[tuple[str, str], type[NestedScheme | UniversalScheme]] = {
    ("nested", "bands"): NestedScheme,
    ("universal", "pixels"): UniversalScheme,
}


class UQDMCodec(LayeredCodec):
    """A UQDM model on one device.

    Option of ``decode``:
        decoder: ``"mean"``: the expected picture, without a head; ``"eyes"``: the picture that
            looks best; ``"realistic"``: likely detail at low rates; ``"flow"``: likely detail from
            the paper's models. Default: eyes if the model has that head and there is more than one
            layer, otherwise mean.
    """

    _heads: Mapping[str, str] = {}  # ids of head files, by decoder

    codec = "uqdm"
    lossless = True
    decode_options = frozenset({"decoder"})
    scheme: NestedScheme | UniversalScheme

    def add_head(self, decoder: str, file: Path) -> None:
        """Add a head file as a decoder. A damaged file raises only when it is used."""
        assert isinstance(self.scheme, NestedScheme)
        self.scheme.add_head(decoder, partial(read_head, file, self.model_id))
        self._heads = {**self._heads, decoder: sha256_of(file)}

    def check_options(self, purpose: Purpose, options: Mapping[str, Any]) -> None:
        """See ``Codec.check_options``."""
        super().check_options(purpose, options)
        known = self.decoders
        decoder = options.get("decoder")
        if decoder is not None and decoder not in known:
            raise ValueError(
                f"{self.codec} ({self.model_id[:8]}) has no decoder {decoder}: it has "
                f"{', '.join(known)}"
            )

    def head_id(self, options: Mapping[str, Any]) -> str:
        """See ``Codec.head_id``."""
        if not isinstance(self.scheme, NestedScheme):
            return ""
        return self._heads.get(options.get("decoder") or self.scheme.default_decoder, "")

    @property
    def decoders(self) -> tuple[str, ...]:
        """The decoders of the model."""
        return self.scheme.decoders if isinstance(self.scheme, NestedScheme) else (MEAN, FLOW)

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
    if isinstance(scheme, NestedScheme):
        codec.lossless = scheme.lossless
        for decoder, file in head_files(path, model_id).items():
            codec.add_head(decoder, file)
    return codec
