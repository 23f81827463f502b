"""Outputs that a job refuses, because it would write into what it reads."""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from ..stores.filesystems import normal_path
from ..stores.store import Store, storage_errors
from ..stores.urls import place_of
from .options import OptionError

Storage = Mapping[str, Any] | None  # fsspec's storage options


def refuse_output(output: Store, archives: Iterable[Store], advice: str = "") -> None:
    """Raise OptionError for an output that is one of the archives it is made of, or lies in one."""
    places = _folders(_location(output.url, output.options))
    for one in archives:
        if _location(one.url, one.options) in places:
            which = "is" if _location(one.url, one.options) == places[0] else "lies in"
            raise OptionError(
                f"--output {output.url}: {which} the archive {one.url}, which is read: "
                f"{advice or 'choose another folder'}"
            )


def refuse_output_in_inputs(
    output: Store, folders: Iterable[str], urls: Iterable[str], options: Storage
) -> None:
    """Raise OptionError if a search of ``urls`` finds what is written into ``output``.

    ``folders`` are those of the output that will hold such files; ``options`` are of the inputs.
    """
    root = _location(output.url, output.options)
    places = {at for name in folders for at in _folders(f"{root}/{name}/x.parquet")}
    for url in urls:
        place = _location(url, options)
        is_glob = re.search(r"[*?\[]", place) and not os.path.exists(place)
        with storage_errors(url, "cannot be listed"):
            pattern = re.compile(glob_translate(place) if is_glob else re.escape(place))
        if any(map(pattern.fullmatch, places)):
            raise OptionError(
                f"--output {output.url}: lies in the input {url}, so another run would take the "
                "archive for pictures: choose a folder outside of the input"
            )


def _location(url: str, options: Storage) -> str:
    """The one spelling of a folder or a pattern: the real path, or a URL."""
    store = place_of(url)
    if not store:
        return os.path.realpath(normal_path(str(LocalFileSystem._strip_protocol(url))))
    more = options or {}
    endpoint = more.get("endpoint_url") or (more.get("client_kwargs") or {}).get("endpoint_url", "")
    path = url.strip()[len(store) :].rstrip("/")
    return f"{endpoint} {store.replace('s3a://', 's3://')}{path}"


def _folders(place: str) -> list[str]:
    """``place`` and all folders above it."""
    steps = place.split("/")
    return ["/".join(steps[:count]) or "/" for count in range(len(steps), 0, -1)]
