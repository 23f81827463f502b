"""The service's answers, and the errors in their place."""

from dataclasses import dataclass

from codec.errors import StrataError


@dataclass(frozen=True)
class Answer:
    """A file and its description.

    ``etag`` names the content: equal tags mean equal bytes. ``layers`` and ``stream_bytes`` count
    what the picture was made from, ``original`` says that this was the kept original. ``damaged``
    is the number of the first unusable layer, None if there is none.
    """

    body: bytes
    media_type: str
    etag: str
    layers: int = 0
    stream_bytes: int = 0
    original: bool = False
    damaged: int | None = None


class NotFound(StrataError):
    """There is no such picture, or all of its data is damaged or gone."""


class CannotShow(StrataError):
    """The picture cannot be shown in this form; the message names a form that works."""
