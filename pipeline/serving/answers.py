"""What the service answers with, and why it may not."""

from dataclasses import dataclass

from codec.errors import StrataError


@dataclass(frozen=True)
class Answer:
    """A file and what there is to say about it.

    ``etag`` names the content: equal tags are equal bytes. ``layers`` and ``stream_bytes`` are
    those that went into the picture. ``original`` tells that it was made from the kept original,
    ``damaged`` is the number of the first layer that could not be used, if one could not.
    """

    body: bytes
    media_type: str
    etag: str
    layers: int = 0
    stream_bytes: int = 0
    original: bool = False
    damaged: int | None = None


class NotThere(StrataError):
    """There is no such picture, or nothing can be shown of it any more."""


class CannotShow(StrataError):
    """The picture cannot be had in this way, but perhaps in another; the message says which."""
