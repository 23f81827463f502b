"""Makes exceptions of workers picklable for the driver."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from codec.errors import StrataError

P = ParamSpec("P")
R = TypeVar("R")


def picklable_errors(method: Callable[P, R]) -> Callable[P, R]:
    """Let ``method`` raise only Strata's own errors; others become RuntimeErrors that name them.

    A library's exception may fail to unpickle and would then end the driver; a SystemExit would end
    the worker. The original is not kept, because the frames of its traceback hold pictures.
    """

    @functools.wraps(method)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except StrataError:
            raise
        except (Exception, SystemExit) as error:
            named = type(error) is RuntimeError
            text = str(error) if named else f"{type(error).__name__}: {error}"
        raise RuntimeError(text)

    return wrapped
