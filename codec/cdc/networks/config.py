"""Reading the parts of a model's configuration."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from ...errors import InvalidModelError

MAX_WIDTH = 1 << 14  # of anything that a configuration gives a width
MAX_SCALES = 16  # each half the size of the one before


def is_width(value: Any) -> bool:
    """Whether a network may have so many channels."""
    return type(value) is int and 1 <= value <= MAX_WIDTH


def checked_fields(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for a dataclass from JSON, lists as tuples.

    Raises InvalidModelError that names what is unknown or missing.
    """
    known = {field.name: field for field in fields(kind)}
    required = {
        name
        for name, field in known.items()
        if field.default is MISSING and field.default_factory is MISSING
    }
    if unknown := sorted(set(values) - known.keys()):
        raise InvalidModelError(f"{kind.__name__} has no setting {', '.join(unknown)}")
    if missing := sorted(required - set(values)):
        raise InvalidModelError(f"{kind.__name__} lacks the setting {', '.join(missing)}")
    return {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
