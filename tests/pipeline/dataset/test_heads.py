"""A dataset carries the reconstruction heads of its model, wherever it lies."""

import json
import uuid
from pathlib import Path

import pytest

from codec.errors import InvalidModelError
from codec.models import heads, zoo
from codec.models.checks import FORMAT
from codec.uqdm.codec import UQDMCodec
from pipeline.dataset.layout import head_paths, model_folder
from pipeline.dataset.models import copy_heads, copy_model, load_model, publish_model
from pipeline.stores.store import Store
from tests.codec.small_models import write_head, write_nested_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's file with a head and its card beside it."""
    path = write_nested_model(tmp_path_factory.mktemp("model"))
    zoo.write_card(write_head(path, "eyes"), {"about": "a head"})
    return path


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    local = request.param == "local"
    return Store(str(tmp_path / "set") if local else f"memory://{uuid.uuid4().hex}")


def test_heads_are_published_and_loaded_with_the_model(store: Store, model: Path) -> None:
    model_id = zoo.model_id(model)
    publish_model(store, model_id, model)
    assert set(store.sizes(model_folder(model_id))) == {
        "model.safetensors",
        "card.json",
        "model.eyes.safetensors",
        "model.eyes.json",
    }
    codec = load_model(store.url, model_id, "cpu")
    assert isinstance(codec, UQDMCodec)
    assert codec.decoders == ("mean", "eyes")
    assert codec.head_id({}) == zoo.model_id(heads.head_file(model, "eyes"))
    assert codec.scheme._head("eyes") is not None, "read before its copy here has gone"


def test_copies_have_the_heads_too(store: Store, model: Path, tmp_path: Path) -> None:
    model_id = zoo.model_id(model)
    publish_model(store, model_id, model)
    other = Store(str(tmp_path / "copy"))
    copy_model(model_id, store, other, None)
    folder = model_folder(model_id)
    assert store.sizes(folder) == other.sizes(folder)
    # A head that was published later reaches a copy that is there already.
    later = write_head(write_nested_model(tmp_path / "later"), "realistic").read_bytes()
    store.create(head_paths(model_id, "realistic")[0], later)
    copy_model(model_id, store, other, None)
    assert other.read(head_paths(model_id, "realistic")[0]) == later


def test_a_copy_takes_the_heads_it_lacks(store: Store, model: Path, tmp_path: Path) -> None:
    model_id = zoo.model_id(model)
    publish_model(store, model_id, model)
    head, card = head_paths(model_id, "eyes")
    other = Store(str(tmp_path / "copy"))
    other.create(card, b"{}")  # of a head that it lacks
    assert copy_heads(model_id, store, other, None) == []
    assert (other.read(head), other.read(card)) == (store.read(head), b"{}")
    assert copy_heads(model_id, store, other, None) == []  # has it
    store.remove(head)
    store.create(head, b"damaged")
    assert copy_model(model_id, store, other, None) == ["eyes"]  # has another one
    other.remove(head)
    with pytest.raises(InvalidModelError, match=rf"{head} is damaged: strata verify --repair"):
        copy_heads(model_id, store, other, None)


def test_heads_of_foreign_numbers_are_damaged(model: Path, tmp_path: Path) -> None:
    head = heads.head_file(model, "eyes")
    config, tensors = zoo.read_tensors(head, heads._METADATA, 1 << 30, "a head")
    strange = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    metadata = {heads._METADATA: json.dumps({**config, "format": FORMAT})}
    zoo.write_tensors(tmp_path / "head", strange, metadata)
    with pytest.raises(InvalidModelError, match="is not a reconstruction head: TypeError"):
        heads.read_head(tmp_path / "head", zoo.model_id(model))


def test_a_model_without_heads_shows_means(store: Store, tmp_path: Path) -> None:
    path = write_nested_model(tmp_path)
    publish_model(store, zoo.model_id(path), path)
    codec = load_model(store.url, zoo.model_id(path), "cpu")
    assert isinstance(codec, UQDMCodec)
    assert codec.decoders == ("mean",)
