"""Makes command-line flags of the fields of a dataclass: ``rate_weight`` becomes --rate-weight.

The type of a field is bool, int, float, str, Path or a Literal of strings or numbers, or one of
these or None. Its ``metadata["help"]`` is shown by --help.
"""

import argparse
import dataclasses
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def add_flags(parser: Any, settings: type, default: str = "default: {}") -> None:
    """Add a flag for each field to a parser or to a group of a parser.

    A flag that was not given is absent from ``given_flags``, so a run's model can have its own
    defaults. ``default`` is the text about them in --help, with ``{}`` for the field's default, or
    its ``metadata["shown"]``.
    Raises TypeError for a field of another type.
    """
    hints = get_type_hints(settings)
    for field in dataclasses.fields(settings):
        about = field.metadata.get("help", "")
        shown = field.metadata.get("shown", field.default)
        text = f"{about} ({default.format(shown)})".strip().replace("%", "%%")
        how = _how(field.name, hints[field.name])
        parser.add_argument(_flag(field.name), default=None, help=text, **how)


def given_flags(namespace: argparse.Namespace, settings: type) -> dict[str, Any]:
    """The values of the flags that were given, by field."""
    values = {field.name: getattr(namespace, field.name) for field in dataclasses.fields(settings)}
    return {name: value for name, value in values.items() if value is not None}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _how(name: str, hint: Any) -> dict[str, Any]:
    """The arguments of ``add_argument`` for a field's type."""
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        return {"choices": choices, "type": type(choices[0])}
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if hint in (int, float, str, Path):
        return {"type": hint}
    raise TypeError(f"{name} of type {hint} cannot be a flag")
