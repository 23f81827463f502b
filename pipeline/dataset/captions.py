"""The caption and the label of a picture, from its side fields."""

import json
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

MAX_LOOKED = 64 << 10  # bytes of a field that are looked into
MAX_CAPTION, MAX_LABEL = 500, 100  # characters that are kept
# The names that WebDataset, img2dataset and Hugging Face use, the likelier first. The same names
# count inside a field that is a JSON object.
CAPTIONS = ("caption", "txt", "text")
LABELS = ("label", "cls", "class")
JSON = "json"
_LAYOUT = "\n\t\r"  # the control characters that a text may hold


class Told(NamedTuple):
    """A caption and a label on one line each, None where there is none."""

    caption: str | None
    label: str | None


NOTHING = Told(None, None)


def text_of(data: bytes) -> str | None:
    """A field as text; None if it is not UTF-8, or holds control characters."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return text if _is_plain(text) else None


def _is_plain(text: str) -> bool:
    """Whether it has no control characters, nor halves of surrogate pairs, which JSON can hold."""
    return text.isprintable() or all(
        letter in _LAYOUT or unicodedata.category(letter) not in ("Cc", "Cs") for letter in text
    )


def caption_of(fields: Iterable[Mapping[str, Any]]) -> Told:
    """The caption and the label among side fields, mappings of ``name`` and ``data`` (or None)."""
    found = _texts(fields, MAX_LOOKED)
    return Told(_first(found, CAPTIONS, MAX_CAPTION), _first(found, LABELS, MAX_LABEL))


def whole_caption_of(fields: Iterable[Mapping[str, Any]]) -> Told:
    """The same with all lines and characters, without white space around them."""
    found = {name: text.strip() for name, text in _texts(fields, None).items()}
    caption, label = (
        next((found[name] for name in _with_json(names) if found.get(name)), None)
        for names in (CAPTIONS, LABELS)
    )
    return Told(caption, label)


def _texts(fields: Iterable[Mapping[str, Any]], most: int | None) -> dict[str, str]:
    """The texts in which captions and labels may be, by field, or ``json.`` and the name there.

    Fields of more than ``most`` bytes are not looked into.
    """
    found: dict[str, str] = {}
    for field in fields:
        name, data = (field["name"] or "").lower(), field["data"]
        if data is None or name not in _LOOKED or (most is not None and len(data) > most):
            continue
        text = text_of(data)
        if text is None:
            continue
        if name == JSON:
            for inner, value in _object(text).items():
                found.setdefault(f"{JSON}.{inner}", value)
        else:
            found.setdefault(name, text)
    return found


_INSIDE = frozenset({*CAPTIONS, *LABELS})
_LOOKED = _INSIDE | {JSON}


def _object(text: str) -> dict[str, str]:
    """The texts and whole numbers that a JSON object has under these names."""
    try:
        value = json.loads(text)
        if not isinstance(value, dict):
            return {}
        texts = {
            name: str(one)
            for name, one in value.items()
            if name in _INSIDE and isinstance(one, str | int) and not isinstance(one, bool)
        }
        return {name: text for name, text in texts.items() if _is_plain(text)}
    except (ValueError, RecursionError):  # also of a number of thousands of digits
        return {}


def _with_json(names: Iterable[str]) -> list[str]:
    return [*names, *(f"{JSON}.{name}" for name in names)]


def _first(found: Mapping[str, str], names: Iterable[str], most: int) -> str | None:
    """The first of these that has words, on one line."""
    for name in _with_json(names):
        line = " ".join(found.get(name, "")[: 4 * most].split())
        if line:
            return line if len(line) <= most else f"{line[: most - 1]}…"
    return None
