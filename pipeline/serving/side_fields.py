"""The side fields of a picture for the page: small texts, and the names of all others."""

from collections.abc import Iterable, Mapping
from typing import Any

from ..dataset.captions import text_of

MAX_FIELDS = 50  # fields that are listed
MAX_TEXT = 4 << 10  # bytes of a text that is shown
MAX_TEXTS = 32 << 10  # bytes of all texts together
_MAX_NAME = 200  # characters


def shown_fields(
    fields: Iterable[Mapping[str, Any]] | None, source_field: str | None
) -> dict[str, Any] | None:
    """``items`` (name, bytes, and text or None) and how many ``more`` there are.

    ``text`` is None if a field is not UTF-8, has control characters or more than ``MAX_TEXT``
    bytes, or if all texts would have more than ``MAX_TEXTS``. The encoded picture's own field is
    left out. Returns None if ``fields`` is None, because they are too large to be read.
    """
    if fields is None:
        return None
    items: list[dict[str, Any]] = []
    more, left = 0, MAX_TEXTS
    for field in fields:
        name, data = field["name"] or "", field["data"]
        if data is None and name == source_field:
            continue
        if len(items) == MAX_FIELDS:
            more += 1
            continue
        data = data or b""
        text = text_of(data) if len(data) <= min(MAX_TEXT, left) else None
        left -= len(data) if text is not None else 0
        items.append({"name": name[:_MAX_NAME], "bytes": len(data), "text": text})
    return {"items": items, "more": more}
