"""Describes an exception in one line, for reports and rows."""


def describe(error: BaseException) -> str:
    """An exception in one line of at most some 500 characters."""
    text = " ".join(str(error).split())[:500]
    name = type(error).__name__
    return text if text and name in _CLEAR else f"{name}: {text}" if text else name


# Classes whose messages are clear without the name of the class.
_CLEAR = {"BrokenImageError", "UnsupportedImageError", "ShardError"}
