"""Requests that fail: errors become statuses with a message; a client's disconnect cancels work."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from codec.errors import StrataError

from ..dataset.data_file import CursorError
from .answers import CannotShow, NotFound
from .limits import LONGEST_PAUSE, Busy
from .schemas import Problem

T = TypeVar("T")

log = logging.getLogger("strata.previews")


class _Gone(Exception):
    """The client has disconnected."""


def add_refusals(app: FastAPI) -> None:
    """Turn exceptions of routes into answers."""

    def refusal(status: int, detail: str, **headers: str) -> JSONResponse:
        return JSONResponse(
            Problem(detail=detail).model_dump(), status, {"Cache-Control": "no-store", **headers}
        )

    def busy(detail: str, seconds: int) -> JSONResponse:
        return refusal(503, detail, **{"Retry-After": str(seconds)})

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        found = (f"{one['loc'][-1]}: {one['msg']}" for one in error.errors())
        return refusal(422, "; ".join(found))

    @app.exception_handler(NotFound)
    async def not_there(_: Request, error: NotFound) -> JSONResponse:
        return refusal(404, str(error))

    @app.exception_handler(CannotShow)
    async def cannot_show(_: Request, error: CannotShow) -> JSONResponse:
        return refusal(422, str(error))

    @app.exception_handler(CursorError)
    async def bad_cursor(_: Request, error: CursorError) -> JSONResponse:
        return refusal(
            400, "this cursor is not from this archive: leave `after` out to start again"
        )

    @app.exception_handler(Busy)
    async def too_many(_: Request, error: Busy) -> JSONResponse:
        return busy(str(error), error.retry_after)

    @app.exception_handler(TimeoutError)
    async def too_late(_: Request, error: TimeoutError) -> JSONResponse:
        return busy("the request took too long", LONGEST_PAUSE)

    @app.exception_handler(StrataError)
    async def fault(request: Request, error: StrataError) -> JSONResponse:
        # The message names buckets and paths, so it goes to the log and not to the client.
        log.error("%s: %s: %s", request.url.path, type(error).__name__, error)
        return busy("the archive cannot be read at the moment", 5 if error.passing else 60)

    @app.exception_handler(_Gone)
    async def gone(_: Request, error: _Gone) -> Response:
        return Response(status_code=499)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("%s: %s", request.url.path, error, exc_info=error)
        return refusal(500, "an internal error; the server's log has more")


async def unless_gone(request: Request, making: Coroutine[Any, Any, T]) -> T:
    """The result of ``making``, which is cancelled if the client disconnects first."""

    async def goes() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    work, gone = asyncio.ensure_future(making), asyncio.ensure_future(goes())
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise _Gone
        return work.result()
    finally:
        work.cancel()
        gone.cancel()
