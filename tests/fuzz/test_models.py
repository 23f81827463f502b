"""Model files with damaged or invalid content: InvalidModelError, or a model that works."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codec import CorruptStreamError, InvalidModelError, load_codec
from codec.models import zoo
from codec.models.checks import check_tensors
from tests.codec.small_models import write_nested_model
from tests.codec.uqdm.paper.test_scheme import small_model

Model = tuple[dict[str, Any], dict[str, torch.Tensor]]

HOSTILE: list[Any] = [
    *(None, True, -1, 0, 1, 2, 3, 7, 64, 255, 10**4, 10**6, 10**12, -(10**12)),
    *(1.5, -0.5, 1e-30, 1e30, "", "x", [], [0], [[]], {}, {"size": -1}, [1e9] * 4),
]
HOSTILE_TENSORS = [
    lambda t: t[:0],
    lambda t: t[:-1],
    lambda t: t.flatten(),
    lambda t: t[None],
    lambda t: torch.cat([t, t]),
    lambda t: t * 0,
    lambda t: -t if t.dtype != torch.uint8 else t + 100,
    lambda t: t + 1,
    lambda t: t * 2,
    lambda t: t.double(),
    lambda t: t.to(torch.int64),
    lambda t: t.to(torch.int8),
    lambda t: t.flip(0),
    lambda t: torch.full_like(t, torch.iinfo(t.dtype).max if not t.is_floating_point() else 1e30),
    lambda t: torch.full_like(t, torch.iinfo(t.dtype).min if not t.is_floating_point() else -1e30),
]
KINDS = ["cdc", "nested", "universal"]


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nested_model(tmp_path_factory.mktemp("nested"))


@pytest.fixture(scope="module")
def models(nested: Path) -> dict[str, Model]:
    return {
        "nested": zoo.read_model(nested),
        "cdc": zoo.read_model(zoo.model_file("cdc-small")),
        "universal": small_model(),
    }


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything in a configuration."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list | tuple):
        items = enumerate(value[:4])
    for key, one in items:
        found += leaves(one, (*path, key))
    return found


def replaced(config: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(config)
    at: Any = changed
    for key in path[:-1]:
        at[key] = list(at[key]) if isinstance(at[key], tuple) else at[key]
        at = at[key]
    at[path[-1]] = value
    return changed


def load(kind: str, model: Model) -> Any:
    """What a model's scheme is, None where it is refused as it should be."""
    try:
        codec = zoo.codec_of(Path(f"{kind}.safetensors"), "0" * 64, *model, "cpu")
    except InvalidModelError:
        return None
    return codec.scheme  # type: ignore[attr-defined]


def use(kind: str, scheme: Any) -> None:
    """A model that was accepted must work on forged symbols, or say that they are."""
    state = scheme.start([(9, 17)], [3])
    layers = [*range(min(scheme.num_layers, 2))]
    if kind == "nested":  # whose lossless layer has networks of its own, and takes any levels
        layers += range(2, scheme.num_layers)[-1:]
    for layer in layers:
        for number in range(scheme.passes(layer)):
            (choice,) = scheme.choices(state, layer, number)
            try:
                scheme.update(state, layer, number, [np.zeros(len(choice.index), np.int32)])
            except (CorruptStreamError, ValueError, LookupError, ArithmeticError):
                return  # what the layered codec reports as damage


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=25)
def test_any_configuration(models: dict[str, Model], kind: str, data: st.DataObject) -> None:
    config, tensors = models[kind]
    path = data.draw(st.sampled_from(leaves(config)))
    changed = replaced(config, path, data.draw(st.sampled_from(HOSTILE)))
    if changed.get("codec") != config["codec"]:
        return  # another family, or none
    scheme = load(kind, (changed, tensors))
    if scheme is not None:
        use(kind, scheme)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=25)
def test_any_tensor(models: dict[str, Model], kind: str, data: st.DataObject) -> None:
    config, tensors = models[kind]
    coding = [name for name in sorted(tensors) if "unet" not in name]
    name = data.draw(st.sampled_from(coding))
    change = data.draw(st.sampled_from(HOSTILE_TENSORS))
    try:
        hostile = change(tensors[name])
        check_tensors({name: hostile})  # as every file's are
    except (IndexError, RuntimeError, ValueError):
        return
    scheme = load(kind, (config, {**tensors, name: hostile}))
    if scheme is not None:
        use(kind, scheme)


@given(at=st.integers(0, 12_000), change=st.integers(1, 255), cut=st.booleans())
@settings(max_examples=60)
def test_any_changed_byte_of_a_file(
    tmp_path_factory: pytest.TempPathFactory, nested: Path, at: int, change: int, cut: bool
) -> None:
    """Mostly of its header, where the configuration is, too."""
    data = bytearray(nested.read_bytes())
    data[at] ^= change
    path = Path(tmp_path_factory.mktemp("model")) / zoo.MODEL_FILE
    path.write_bytes(data[:at] if cut else data)
    try:
        codec = load_codec(path)
    except InvalidModelError:
        return
    use("nested", codec.scheme)  # type: ignore[attr-defined]
