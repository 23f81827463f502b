"""The errors that Strata raises on purpose. A message says what is wrong and what to do."""


class StrataError(Exception):
    """Base of every error that Strata raises on purpose.

    ``passing`` says whether another attempt may succeed, for example if a store did not answer. For
    most errors it is False, because somebody has to do something first. A class sets it for all its
    errors, or the code that raises an error sets it for that one. It survives pickling.
    """

    passing = False

    def __init__(self, *arguments: object, passing: bool | None = None) -> None:
        super().__init__(*arguments)
        if passing is not None:
            self.passing = passing


class CorruptStreamError(StrataError):
    """A stream is damaged or cut, or was written with another model.

    ``layer`` is the index of the first layer that cannot be read; the layers before it still decode
    (``encoded.truncate(error.layer)``). It is None if the header cannot be read. Messages count
    layers from 1, as ``layers=k`` does.
    """

    def __init__(self, message: str, layer: int | None = None) -> None:
        super().__init__(message)
        self.layer = layer

    def __reduce__(self):  # keeps ``layer`` when the error is pickled
        return type(self), (self.args[0], self.layer), self.__dict__


def layer_name(index: int) -> str:
    """The name for people of the layer with this index: they count from 1."""
    return f"layer {index + 1}"


class UnknownModelError(StrataError):
    """There is no model of this name, path or id, or the stream was written with another model."""


class InvalidModelError(StrataError):
    """A model file or checkpoint is damaged, is of another kind, or does not pass its checks."""


class MissingPackageError(StrataError):
    """A Python package is not installed; the message names it."""


class UnsupportedImageError(StrataError):
    """A picture cannot become 8-bit RGB without losing something important."""


class BrokenImageError(StrataError):
    """The bytes of a picture are empty, cut or damaged: they hold no whole picture."""


def printable(text: str) -> str:
    """``text`` in one line for any terminal, with control characters and surrogates escaped.

    Names of files and keys may hold sequences that control a terminal.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
