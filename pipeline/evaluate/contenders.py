"""The contenders of an evaluation: models with their options, one for each quality, and peers."""

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from codec import Codec, load_codec
from codec.errors import UnknownModelError

from ..reader.dataset import DatasetError, open_dataset
from ..running.options import OptionError
from ..stores.urls import refuse_secrets
from .peers import all_peers

PREFIXES = {"yes": True, "no": False}
_OPTION = re.compile(r"[a-z_]+=")
_FORM = (
    "a model is written as NAME[,OPTION=VALUE]...: quality=all or quality=0+2, prefixes=no, "
    "label=..., or an option of its codec"
)


@dataclass(frozen=True)
class Contender:
    """One model at one quality, or one peer with all its settings.

    Attributes:
        group: its name in tables. Contenders of one group are the settings of one curve.
        setting: name of the quality; "" for a peer, whose settings have names of their own.
        spec: everything that its files depend on, except the pictures. It is a part of the name of
            a task's record.
    """

    group: str
    setting: str
    spec: Mapping[str, Any] = field(hash=False)

    @property
    def is_model(self) -> bool:
        return "model_id" in self.spec

    @property
    def lossless(self) -> bool:
        """Whether it is a lossless peer. Whether a model is exact is measured."""
        return not self.is_model and all_peers()[self.spec["peer"]].lossless

    @property
    def title(self) -> str:
        return f"{self.group} {self.setting}".strip()

    def to_json(self) -> dict[str, Any]:
        return {"group": self.group, "setting": self.setting, "spec": dict(self.spec)}


def parse_model(text: str) -> tuple[str, dict[str, str]]:
    """The source and the options in a ``--model`` argument. Raises OptionError for wrong syntax."""
    source, *pairs = text.split(",")
    if not source or not all(_OPTION.match(pair) for pair in pairs):
        raise OptionError(f"--model {text}: {_FORM}")
    options = dict(pair.split("=", 1) for pair in pairs)
    if len(options) < len(pairs):
        raise OptionError(f"--model {text}: an option is given twice")
    return source, options


def model_contenders(
    texts: Sequence[str],
    layers: int | None,
    storage_options: Mapping[str, Any] | None = None,
    scratch: str | None = None,
) -> tuple[list[Contender], list[tuple[str, Codec]]]:
    """Contenders of the ``--model`` arguments, and the models they need with their short names.

    Raises OptionError for options that a model does not have, UnknownModelError and others if a
    model cannot be loaded.
    """
    contenders: list[Contender] = []
    models: dict[str, tuple[str, Codec]] = {}  # by id
    for text in texts:
        source, given = parse_model(text)
        codec, name = _load(source, storage_options, scratch)
        models[codec.model_id] = name, codec
        contenders += _of_model(text, given, codec, name, layers)
    return contenders, list(models.values())


def _load(source: str, options: Mapping[str, Any] | None, scratch: str | None) -> tuple[Codec, str]:
    """The model and its short name. The model of an archive has the archive's name."""
    refuse_secrets(source)
    try:
        codec = load_codec(source)
        return codec, codec.name
    except UnknownModelError as error:
        try:
            codec = open_dataset(source, options).codec("cpu", scratch)
            return codec, source.rstrip("/").rpartition("/")[2]
        except DatasetError:
            raise UnknownModelError(f"{error}, or an archive's URL") from error


def _of_model(
    text: str, given: dict[str, str], codec: Codec, short: str, layers: int | None
) -> list[Contender]:
    qualities = _qualities(text, codec, given.pop("quality", "all"))
    label = given.pop("label", "")
    prefixes = given.pop("prefixes", "yes")
    if prefixes not in PREFIXES:
        raise OptionError(f"--model {text}: prefixes must be yes or no, not {prefixes}")
    options = {name: _value(value) for name, value in given.items()}
    encode = {name: value for name, value in options.items() if name in codec.encode_options}
    only_encode = set(codec.encode_options) - set(codec.decode_options)
    decode = {name: value for name, value in options.items() if name not in only_encode}
    try:
        codec.check_options("decode", decode)
        codec.check_options("encode", encode)
    except (TypeError, ValueError) as error:
        raise OptionError(f"--model {text}: {error}") from error
    name = label or " ".join([short, *(f"{key}={value}" for key, value in given.items())])
    contenders = []
    for quality in qualities:
        spec: dict[str, Any] = {
            "model_id": codec.model_id,
            "encode": encode | ({} if quality is None else {"quality": quality}),
            "decode": decode,
            "layers": min(layers or codec.num_layers, codec.num_layers),
            "prefixes": PREFIXES[prefixes],
        }
        spec["encoder"] = _encoder(codec, spec)
        spec["head"] = codec.head_id(decode)
        setting = "" if quality is None else f"quality {quality}"
        contenders.append(Contender(name, setting, spec))
    return contenders


def _encoder(codec: Codec, spec: Mapping[str, Any]) -> str:
    """Identifies the version of an encoder: a hash of the stream that it makes of one picture.

    A model's id identifies the decoder only. Another version of the program may choose another of
    the many possible streams, and then all figures differ.
    """
    try:
        (stream,) = codec.encode([_trial_picture()], layers=spec["layers"], **spec["encode"])
    except Exception:  # the workers will report it
        return "none"
    return hashlib.sha256(stream.header + b"".join(stream.layers)).hexdigest()[:16]


def _trial_picture() -> np.ndarray:
    """``(64, 64, 3) uint8``: slopes, edges and noise, computed in integers, so equal everywhere."""
    y, x = np.mgrid[:64, :64]
    slopes = np.stack([x * y // 16, x * x // 24 + y, 2 * y + 64 * (x // 20)], -1) % 256
    noise = np.random.RandomState(0).randint(-8, 9, slopes.shape)  # numpy keeps these numbers
    return (slopes + noise).clip(0, 255).astype(np.uint8)


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _qualities(text: str, codec: Codec, wanted: str) -> list[int | None]:
    """The qualities to measure; [None] for a codec without any. Raises OptionError."""
    if wanted == "all":
        if "quality" not in codec.encode_options:
            return [None]
        return [*available_qualities(codec)]
    try:
        chosen = [int(part) for part in wanted.split("+")]
        for quality in chosen:
            codec.check_options("encode", {"quality": quality})
    except (TypeError, ValueError) as error:
        raise OptionError(f"--model {text}: quality={wanted}: {error}") from error
    return [*dict.fromkeys(chosen)]


def available_qualities(codec: Codec) -> list[int]:
    """All qualities of a model that has several."""
    qualities = []
    for quality in itertools.count():
        try:
            codec.check_options("encode", {"quality": quality})
        except ValueError:
            break
        qualities.append(quality)
    return qualities


def peer_contenders(names: Sequence[str] | None) -> tuple[list[Contender], list[str]]:
    """Contenders for the named peers (None: all that are installed), and notes on missing peers.

    Raises OptionError for an unknown name, and for a named peer that is not installed.
    """
    peers = all_peers()
    contenders, notes = [], []
    if names is not None and (unknown := [name for name in names if name not in peers]):
        raise OptionError(
            f"--peers: there is no {', '.join(unknown)}; there are {', '.join(peers)}, or none"
        )
    for name, peer in peers.items():
        if names is not None and name not in names:
            continue
        if peer.library:
            settings = [[one.name, dict(one.arguments)] for one in peer.settings]
            spec = {"peer": name, "library": peer.library, "settings": settings}
            contenders.append(Contender(peer.title, "", spec))
        elif names is None:
            notes.append(f"{peer.title} was left out: {peer.missing}")
        else:
            raise OptionError(f"--peers {name}: {peer.missing}")
    return contenders, notes


def check_names(contenders: Sequence[Contender]) -> None:
    """Raise OptionError if two contenders have the same name."""
    seen: set[tuple[str, str]] = set()
    peers = {one.group for one in contenders if not one.is_model}
    for contender in contenders:
        key = (contender.group, contender.setting)
        if key in seen or (contender.is_model and contender.group in peers):
            raise OptionError(
                f"--model: two contenders are called {contender.group}: name one with label=..."
            )
        seen.add(key)
