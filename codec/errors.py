"""The few errors a codec raises on purpose, each of which names what is wrong and what to do."""


class StrataError(Exception):
    """Base of every error that Strata raises on purpose.

    ``passing`` says whether trying again later may succeed. It is False where somebody has to do
    something first, and for most errors; True where, say, a store did not answer. A class says it
    for all its errors, or whoever raises one for that one; it crosses process boundaries.
    """

    passing = False

    def __init__(self, *arguments: object, passing: bool | None = None) -> None:
        super().__init__(*arguments)
        if passing is not None:
            self.passing = passing


class CorruptStreamError(StrataError):
    """A stream is damaged, cut short, or was not written by the model that should read it.

    ``layer`` is the index of the first layer that cannot be read; every layer before it still
    decodes (``encoded.truncate(error.layer)``). It is None where the header itself is unreadable.
    Messages count layers from 1, as ``layers=k`` does.
    """

    def __init__(self, message: str, layer: int | None = None) -> None:
        super().__init__(message)
        self.layer = layer

    def __reduce__(self):  # keeps ``layer`` when the error crosses a process boundary
        return type(self), (self.args[0], self.layer), self.__dict__


def layer_name(index: int) -> str:
    """What people read of the layer with this index: they count from 1."""
    return f"layer {index + 1}"


class UnknownModelError(StrataError):
    """No model of this name, path or id can be found, or the stream names another one."""


class InvalidModelError(StrataError):
    """A model file or checkpoint is damaged, foreign, or does not pass its own checks."""


class MissingPackageError(StrataError):
    """Something needs a Python package that is not installed; the message names it."""


class UnsupportedImageError(StrataError):
    """A picture cannot be turned into 8-bit RGB without silently losing what matters."""


class BrokenImageError(StrataError):
    """The bytes of a picture are empty, cut short or damaged: there is no whole picture in them."""


def printable(text: str) -> str:
    """``text`` in one line that any terminal can show: control characters, surrogates escaped.

    Names of files and keys may hold what moves the cursor, or what a terminal obeys.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
