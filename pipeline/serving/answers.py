"""The service's answers and errors."""

from dataclasses import dataclass

from codec.errors import StrataError


@dataclass(frozen=True)
class Answer:
    """A file and its description.

    ``etag`` identifies the content: equal tags mean equal bytes. The picture was made from
    ``layers`` layers of ``stream_bytes`` bytes, or from the kept original (``original``).
    ``damaged`` is the number of the first unusable layer, None if there is none.
    """

    body: bytes
    media_type: str
    etag: str
    layers: int = 0
    stream_bytes: int = 0
    original: bool = False
    damaged: int | None = None


class NotFound(StrataError):
    """There is no such picture, or all of its data is damaged or missing."""


class CannotShow(StrataError):
    """The picture cannot be shown in this form; the message names a form that works."""
