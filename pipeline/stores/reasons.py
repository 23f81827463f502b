"""An exception as a reason, for reports and rows."""


def describe(error: BaseException) -> str:
    """An exception as a reason: its general part first, the particulars after a colon."""
    text = " ".join(str(error).split())[:500]
    name = type(error).__name__
    return text if text and name in _CLEAR else f"{name}: {text}" if text else name


# Classes whose messages are clear without the name of the class.
_CLEAR = {"BrokenImageError", "UnsupportedImageError", "ShardError"}
