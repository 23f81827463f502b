"""A dataset's own copy of the model that its streams were written with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codec import Codec, load_codec
from codec.errors import InvalidModelError
from codec.models import zoo

from ..stores.store import Store
from .layout import card_path, model_folder, model_path
from .rows import file_sha256


def publish_model(store: Store, model_id: str, file: Path) -> None:
    """Copy a model file, and the card beside it if there is one, into a dataset."""
    store.create_from(model_path(model_id), file)
    card = zoo.card_file(file)
    if card.is_file():
        store.create_from(card_path(model_id), card)


def load_model(
    dataset_url: str,
    model_id: str,
    device: str,
    options: Mapping[str, Any] | None = None,
    scratch: str | None = None,
) -> Codec:
    """Load a dataset's own copy of a model. Raises UnknownModelError, InvalidModelError."""
    store = Store(dataset_url, options)
    name = model_path(model_id)
    with store.local(name, scratch) as path:
        if path.is_file() and (found := file_sha256(path)) != model_id:  # before it is parsed
            raise InvalidModelError(f"{dataset_url}/{name} is damaged: its sha256 is {found}")
        return load_codec(path, device=device)


def check_model(store: Store, model_id: str) -> tuple[str, int]:
    """What is wrong with the dataset's copy of its model ("" if nothing), and the bytes read."""
    try:
        with store.local(model_path(model_id), None) as path:
            found, size = file_sha256(path), path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return "is gone", 0
    return "" if found == model_id else f"its content has changed: its sha256 is {found}", size


def copy_model(model_id: str, source: Store, target: Store, scratch: str | None) -> None:
    """Copy the model of one dataset into another. Raises InvalidModelError for a damaged one.

    ``scratch`` is a local folder for temporary files (default: the system's).
    """
    folder = model_folder(model_id)
    present, theirs = target.sizes(folder), source.sizes(folder)
    if zoo.MODEL_FILE not in theirs:
        raise InvalidModelError(
            f"{source.url}/{model_path(model_id)} is gone: verify_dataset.py --repair puts a "
            "shipped one there"
        )
    for name in (zoo.MODEL_FILE, zoo.CARD_FILE):
        if name in present or name not in theirs:
            continue
        with source.local(f"{folder}/{name}", scratch) as local:
            if name == zoo.MODEL_FILE and file_sha256(local) != model_id:
                raise InvalidModelError(
                    f"{source.url}/{folder}/{name} is damaged: verify_dataset.py --repair "
                    "replaces it"
                )
            target.create_from(f"{folder}/{name}", local)
