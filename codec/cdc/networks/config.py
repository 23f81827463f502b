"""Base of the dataclasses that the parts of a model's configuration are."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar, Self

from ...errors import InvalidModelError

MAX_WIDTH = 1 << 14  # of anything that a configuration gives a width
MAX_SCALES = 16  # each half the size of the one before


def is_width(value: Any) -> bool:
    """Whether a network may have so many channels."""
    return type(value) is int and 1 <= value <= MAX_WIDTH


class Part:
    """A part of a model file's JSON, whose values ``__post_init__`` checks.

    Attributes:
        part: what the configuration calls it.
        kind: which of several it is; "" where there is one.
    """

    part: ClassVar[str]
    kind: ClassVar[str] = ""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Of a model file's JSON. Raises InvalidModelError naming what is wrong."""
        if values.get("kind", cls.kind) != cls.kind:
            raise InvalidModelError(f"{cls.part}: kind {values['kind']!r} is not {cls.kind!r}")
        given = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
        given.pop("kind", None)
        try:
            return cls(**given)
        except (TypeError, ValueError) as error:
            raise InvalidModelError(f"{cls.part}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """What ``from_dict`` reads, as JSON would have it."""
        fields: dict[str, Any] = asdict(self)  # type: ignore[call-overload]
        values = {n: list(v) if isinstance(v, tuple) else v for n, v in fields.items()}
        return {"kind": self.kind, **values} if self.kind else values
