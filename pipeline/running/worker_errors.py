"""Which exceptions leave a worker."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from codec.errors import StrataError

P = ParamSpec("P")
R = TypeVar("R")


def plain_errors(method: Callable[P, R]) -> Callable[P, R]:
    """Have ``method`` raise no errors but Strata's own and RuntimeErrors that tell the others.

    A library's exception may not survive the way to the driver, and then takes the driver along
    (or the worker: SystemExit). Nothing refers to it afterwards, because the frames in its
    traceback hold pictures.
    """

    @functools.wraps(method)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except StrataError:
            raise
        except (Exception, SystemExit) as error:
            plain = type(error) is RuntimeError
            text = str(error) if plain else f"{type(error).__name__}: {error}"
        raise RuntimeError(text)

    return wrapped
