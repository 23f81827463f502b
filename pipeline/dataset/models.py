"""A dataset's own copy of the model that its streams were written with, and of its heads."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from codec import Codec, load_codec
from codec.errors import InvalidModelError
from codec.models import zoo
from codec.models.heads import DECODERS, MAX_HEAD_BYTES, head_files, read_head

from ..stores.store import Store, scratch_folder
from .layout import card_path, head_paths, model_folder, model_path
from .rows import file_sha256


def publish_model(store: Store, model_id: str, file: Path) -> None:
    """Copy a model file into a dataset, its reconstruction heads, and the cards beside them."""
    named = {model_path(model_id): file, card_path(model_id): zoo.card_file(file)}
    for decoder, head in head_files(file, model_id).items():
        path, card = head_paths(model_id, decoder)
        named |= {path: head, card: zoo.card_file(head)}
    for path, local in named.items():
        if local.is_file():
            store.create_from(path, local)


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
    with _fetched(store, model_id, scratch) as path:
        if path.is_file() and (found := file_sha256(path)) != model_id:  # before it is parsed
            raise InvalidModelError(f"{dataset_url}/{name} is damaged: its sha256 is {found}")
        return load_codec(path, device=device)


@contextmanager
def _fetched(store: Store, model_id: str, scratch: str | None) -> Iterator[Path]:
    """The model file on this machine for as long, its heads beside it."""
    name = model_path(model_id)
    if store.is_local:
        with store.local(name, scratch) as path:
            yield path
        return
    there = store.sizes(model_folder(model_id))
    heads = [head_paths(model_id, decoder)[0] for decoder in DECODERS]
    heads = [path for path in heads if _base(path) in there]
    with scratch_folder(scratch) as folder:
        for one in (name, *heads):
            store.fetch(one, folder / _base(one))
        yield folder / _base(name)


def _base(path: str) -> str:
    return path.rpartition("/")[2]


def check_model(store: Store, model_id: str) -> tuple[str, int]:
    """What is wrong with the dataset's copy of its model ("" if nothing), and the bytes read."""
    try:
        with store.local(model_path(model_id), None) as path:
            found, size = file_sha256(path), path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return "is gone", 0
    return "" if found == model_id else f"its content has changed: its sha256 is {found}", size


def check_heads(store: Store, model_id: str) -> Iterator[tuple[str, str]]:
    """The paths of the dataset's reconstruction heads, and what is wrong with each, or ""."""
    there = store.sizes(model_folder(model_id))
    for decoder in DECODERS:
        path, _ = head_paths(model_id, decoder)
        if _base(path) in there:
            try:
                with store.local(path, None) as local:
                    read_head(local, model_id)
                yield path, ""
            except InvalidModelError as error:
                yield path, str(error)


def copy_model(model_id: str, source: Store, target: Store, scratch: str | None) -> list[str]:
    """Copy the model of one dataset into another. Raises InvalidModelError for a damaged one.

    ``scratch`` is a local folder for temporary files (default: the system's). Returns what
    ``copy_heads`` returns.
    """
    folder = model_folder(model_id)
    present, theirs = target.sizes(folder), source.sizes(folder)
    if zoo.MODEL_FILE not in theirs:
        raise InvalidModelError(
            f"{source.url}/{model_path(model_id)} is gone: strata verify --repair puts a "
            "shipped one there"
        )
    for name in (zoo.MODEL_FILE, zoo.CARD_FILE):
        if name in present or name not in theirs:
            continue
        with source.local(f"{folder}/{name}", scratch) as local:
            if name == zoo.MODEL_FILE and file_sha256(local) != model_id:
                raise InvalidModelError(
                    f"{source.url}/{folder}/{name} is damaged: strata verify --repair replaces it"
                )
            target.create_from(f"{folder}/{name}", local)
    return copy_heads(model_id, source, target, scratch)


def copy_heads(model_id: str, source: Store, target: Store, scratch: str | None) -> list[str]:
    """Copy the reconstruction heads that the other dataset lacks, each with its card.

    Returns the decoders of which it has other heads, which stay. Raises InvalidModelError for a
    damaged one.
    """
    folder = model_folder(model_id)
    present, theirs = target.sizes(folder), source.sizes(folder)
    others = []
    for decoder in DECODERS:
        path, card = head_paths(model_id, decoder)
        if _base(path) not in theirs:
            continue
        if _base(path) in present:
            if source.read(path, MAX_HEAD_BYTES) != target.read(path, MAX_HEAD_BYTES):
                others.append(decoder)
            continue
        with source.local(path, scratch) as local:
            try:
                read_head(local, model_id)
            except InvalidModelError as error:
                raise InvalidModelError(
                    f"{source.url}/{path} is damaged: strata verify --repair replaces it"
                ) from error
            target.create_from(path, local)
        if _base(card) in theirs and _base(card) not in present:
            target.create(card, source.read(card))
    return others
