"""A reconstruction head in training: from a model's file, and as files of a run."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from ...base import Codec
from ...images import metrics
from ...images.perception import can_judge, ssimulacra2
from ...models import heads, zoo
from ...perception import features_installed
from ...perception.features import SMALLEST, Features, as_unit, feature_distance
from ...training.recipe import TRAINING_FILE, Trainable
from ..scheme import MEAN
from .head import HeadConfig, HeadNetwork
from .head_objective import Decoder, HeadObjective
from .scheme import NestedScheme


@dataclass(frozen=True)
class HeadTrainable(Trainable):
    """A head for a model that stays as it is.

    Attributes:
        base: the model's file and its training file, which a run's folder gets copies of.
        model_id: the model's.
    """

    base: tuple[Path, Path] = (Path(), Path())
    model_id: str = ""
    decoder: str = ""
    shared: ClassVar[bool] = False

    @classmethod
    def of(cls, path: Path, training_file: Path, decoder: str, kept: int) -> "HeadTrainable":
        """Of a shipped model's name or a run's folder: a new head, or the one that is there.

        Raises UnknownModelError, InvalidModelError.
        """
        file = zoo.model_file(path)
        config, tensors = zoo.read_model(file)
        scheme, model_id = NestedScheme(config, tensors, "cpu"), zoo.model_id(file)
        found = heads.head_files(file, model_id).get(decoder)
        if found:
            own, values = heads.read_head(found, model_id)
            network = HeadNetwork(HeadConfig.from_dict(own))
            network.load_state_dict({name: value.float() for name, value in values.items()})
        else:
            levels, trunk = scheme.config.levels, scheme.trunk_channels
            network = HeadNetwork(HeadConfig(levels, trunk, noise=decoder == "realistic"))
        scheme_on = partial(NestedScheme, config, tensors)
        objective = HeadObjective(scheme_on, cast(Decoder, decoder), kept, prepared=bool(found))
        base = file, training_file
        return cls(network, objective, config, {}, base, model_id, decoder)

    def tensors(self, counted_on: Sequence[np.ndarray] = ()) -> dict[str, Tensor]:
        """See ``Trainable.tensors``: the head's own."""
        return dict(self.model.state_dict())

    def write(
        self, out: Path, weights: Mapping[str, Tensor], counted_on: Sequence[np.ndarray]
    ) -> None:
        """See ``Trainable.write``: copies of the model's files, and the head's own."""
        assert isinstance(self.model, HeadNetwork)
        for file, name in zip(self.base, (zoo.MODEL_FILE, TRAINING_FILE), strict=True):
            if file != out / name:
                zoo.write_whole(out / name, partial(shutil.copy, file))
        if (card := zoo.card_file(self.base[0])).is_file() and card.parent != out:
            zoo.write_whole(out / zoo.CARD_FILE, partial(shutil.copy, card))
        path = heads.head_file(out / zoo.MODEL_FILE, self.decoder)
        heads.write_head(path, self.decoder, self.model_id, self.model.config.to_dict(), weights)

    def card_file(self, out: Path) -> Path:
        """See ``Trainable.card_file``: the head's."""
        return zoo.card_file(heads.head_file(out / zoo.MODEL_FILE, self.decoder))

    def measure(self, codec: Codec, pictures: Sequence[np.ndarray]) -> dict[str, Any]:
        """Of each prefix of lossy layers: bits, and what the mean and the head come to.

        PSNR in dB of all pixels; means over pictures of SSIMULACRA2 and of the distance of
        features, where their packages are installed.
        """
        assert isinstance(self.model, HeadNetwork)
        pixels = sum(x.shape[0] * x.shape[1] for x in pictures)
        streams = codec.encode(pictures, layers=self.model.config.levels)
        prefixes = range(1, self.model.config.levels + 1)
        sizes = [sum(s.truncate(k).nbytes for s in streams) for k in prefixes]
        measured: dict[str, Any] = {"bpp": [round(8 * size / pixels, 4) for size in sizes]}
        for decoder in (MEAN, self.decoder):
            looks = [
                looks_of(pictures, shown)
                for shown in codec.decode_progressively(streams, decoder=decoder)
            ]
            measured[decoder] = {name: [of[name] for of in looks] for name in looks[0]}
        return measured


def looks_of(
    pictures: Sequence[np.ndarray], shown: Sequence[np.ndarray], features: Features | None = None
) -> dict[str, float]:
    """How near pictures ``(H, W, 3) uint8`` came to their originals, by what is installed here."""
    pairs = list(zip(pictures, shown, strict=True))
    error = sum(metrics.mse(a, b) * a.size for a, b in pairs) / sum(a.size for a in pictures)
    found = {"psnr": round(float(10 * np.log10(255**2 / max(error, 1e-9))), 3)}
    if can_judge():
        scores = [score for a, b in pairs if (score := ssimulacra2(a, b)) is not None]
        found["ssimulacra2"] = round(float(np.mean(scores)), 2)
    if features_installed():
        network = features or Features()
        whole = [pair for pair in pairs if min(pair[0].shape[:2]) >= SMALLEST]
        of = [feature_distance(*(network(as_unit(x)) for x in pair)) for pair in whole]
        found["features"] = round(float(torch.cat(of).mean()), 4)
    return found
