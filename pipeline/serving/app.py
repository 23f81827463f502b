"""The HTTP interface: routes, their parameters, errors and headers. Does not need Ray.

app = create_app(PreviewService.open(Settings("s3://bucket/archive")))
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import unquote_to_bytes

import pyarrow.compute as pc
from fastapi import FastAPI, Header, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles

from ..reader.pages import PageQuery
from .access import OPEN_ACCESS, Access, Guard
from .answers import Answer, NotFound
from .metrics import MetricsSource
from .middleware import Heads, Observed, RawKeys
from .preview_reader import ORIGINALS, PreviewRequest
from .refusals import add_refusals, unless_gone
from .rendering import MEDIA_TYPES, Format
from .schemas import (
    ETAG,
    PICTURE_HEADERS,
    STREAM_HEADERS,
    Facts,
    Health,
    Info,
    Page,
    Positive,
    errors,
    file_response,
)
from .service import STREAM_TYPE, PreviewService

T = TypeVar("T")

STATIC = Path(__file__).parent / "static"
MIN_SIDE, MAX_SIDE = 16, 4096
# A picture may change (--retry bad, a repair). A URL with a version changes with it, so its answer
# can be cached for good. For a URL without one, clients ask again after an hour and mostly get 304.
# Private: a shared cache would answer without checking the token.
_HOUR = "private, max-age=3600"
_FOREVER = "private, max-age=31536000, immutable"
_ASK = "no-cache"  # clients ask each time whether their copy is the newest
_NEVER = "no-store"

log = logging.getLogger("strata.previews")

Key = Annotated[
    str,
    PathParameter(
        description="The picture's key, percent-encoded as a whole (`/` is `%2F`). Slashes may "
        "stay as they are, unless the key ends in `/info` or `/stream`.",
        examples=["cat%2F0042"],
    ),
]
IfNoneMatch = Annotated[
    str | None, Header(description="ETags of copies that the client has", examples=['"5f2c..."'])
]


Version = Annotated[
    str | None,
    Query(
        max_length=64,
        description="The archive's version (from /v1/dataset): the answer can be cached for good",
    ),
]


def create_app(
    service: PreviewService,
    metrics: MetricsSource | None = None,
    access: Access = OPEN_ACCESS,
) -> FastAPI:
    """The ASGI application of ``service``, which it closes when it ends.

    ``access`` says who may send requests. /metrics shows ``metrics`` (default: the service's own).
    """
    source: MetricsSource = metrics or service.metrics

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sharing = asyncio.create_task(source.share())
        yield
        sharing.cancel()
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="Strata previews",
        version="1",
        summary="Pictures of one archive, at any number of layers and any size",
        description=_DESCRIPTION,
        docs_url=None,  # these pages load scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,  # a key may end in a slash
        lifespan=lifespan,
    )
    # The middleware that is added last sees a request first.
    app.state.service = service
    app.add_middleware(Guard, access=access)
    app.add_middleware(Observed, metrics=service.metrics)
    app.add_middleware(RawKeys)
    app.add_middleware(Heads)
    add_refusals(app)
    _add_pictures(app, service)
    _add_lists(app, service)
    _add_page(app, source)
    return app


_DESCRIPTION = """
A picture's stream has layers. Its first few hundred bytes give a picture, and every further layer a
better one. `layers=1` reads only one layer from the store.
"""


def _add_pictures(app: FastAPI, service: PreviewService) -> None:
    Layers = Annotated[
        int | None,
        Query(
            ge=1,
            le=service.dataset.num_layers,
            description="How many layers; default: all that are stored",
        ),
    ]

    @app.get(
        "/v1/images/{key:path}/info",
        summary="A picture's metadata",
        response_model=Info,
        responses=errors(404, 422, 503),
    )
    async def info(request: Request, key: Key) -> JSONResponse:
        found = await unless_gone(request, service.info(_key(key)))
        return JSONResponse(found, headers={"Cache-Control": _ASK})

    @app.get(
        "/v1/images/{key:path}/stream",
        summary="The first layers as they are stored, for programs that decode them",
        response_class=Response,
        responses=file_response("The stream", [STREAM_TYPE], STREAM_HEADERS)
        | errors(404, 422, 503),
    )
    async def stream(
        request: Request,
        key: Key,
        layers: Layers = None,
        v: Version = None,
        if_none_match: IfNoneMatch = None,
    ) -> Response:
        reading = service.stream(_key(key), layers, _known(if_none_match))
        answer = await unless_gone(request, reading)
        return _file(answer, _FOREVER if v == service.version else _HOUR)

    @app.get(
        "/v1/images/{key:path}",
        summary="A picture, decoded from its first layers",
        response_class=Response,
        responses=file_response("The picture", list(MEDIA_TYPES.values()), PICTURE_HEADERS)
        | errors(404, 422, 503),
    )
    async def image(
        request: Request,
        key: Key,
        layers: Layers = None,
        max_side: Annotated[
            int | None,
            Query(
                ge=MIN_SIDE,
                le=MAX_SIDE,
                description="Scale the picture down so that no side is longer (pixels)",
            ),
        ] = None,
        format: Annotated[
            Format, Query(description="`png` is lossless, the others are not")
        ] = "webp",
        v: Version = None,
        if_none_match: IfNoneMatch = None,
    ) -> Response:
        wanted = PreviewRequest(_key(key), layers, max_side, format)
        answer = await unless_gone(request, service.image(wanted, _known(if_none_match)))
        return _file(answer, _FOREVER if v == service.version else _HOUR)

    @app.get(
        "/v1/originals/{key:path}",
        summary="The original file, where it is kept",
        response_class=Response,
        responses=file_response("The file", [*ORIGINALS.values(), "application/octet-stream"], ETAG)
        | errors(404, 422, 503),
    )
    async def original(request: Request, key: Key, if_none_match: IfNoneMatch = None) -> Response:
        reading = service.original(_key(key), _known(if_none_match))
        return _file(await unless_gone(request, reading), _HOUR)


def _add_lists(app: FastAPI, service: PreviewService) -> None:
    @app.get(
        "/v1/images",
        summary="Pictures in the archive's order",
        response_model=Page,
        responses=errors(400, 404, 422, 503),
    )
    async def images(
        request: Request,
        after: Annotated[
            str | None, Query(max_length=1000, description="`next` of the previous page")
        ] = None,
        next_to: Annotated[
            str | None,
            Query(
                max_length=10_000,
                description="A key, in place of `after`: the page begins with the picture after "
                "it, or with `backwards` with the one before it",
            ),
        ] = None,
        backwards: Annotated[
            bool,
            Query(description="In reverse order, from `after`, `next_to` or the end"),
        ] = False,
        limit: Annotated[int, Query(ge=1, le=500)] = 100,
        search: Annotated[
            str, Query(max_length=200, description="A part of the key, in upper or lower case")
        ] = "",
        captions: Annotated[
            bool,
            Query(
                description="Also return captions and labels, and search them; reads side fields"
            ),
        ] = False,
        min_width: Positive | None = None,
        max_width: Positive | None = None,
        min_height: Positive | None = None,
        max_height: Positive | None = None,
        format: Annotated[
            str | None,
            Query(max_length=20, description="The original file's format", examples=["png"]),
        ] = None,
    ) -> JSONResponse:
        bounds = [
            ("width", ">=", min_width),
            ("width", "<=", max_width),
            ("height", ">=", min_height),
            ("height", "<=", max_height),
            ("source_format", "==", format),
        ]
        query = PageQuery(after, limit, search, _filter(bounds), captions, backwards)
        page = await unless_gone(request, service.page(query, next_to))
        return JSONResponse(page, headers={"Cache-Control": _ASK})

    @app.get("/v1/dataset", summary="The archive", response_model=Facts, responses=errors(503))
    async def dataset() -> JSONResponse:
        return JSONResponse(service.facts(), headers={"Cache-Control": _ASK})


def _add_page(app: FastAPI, source: MetricsSource) -> None:
    @app.get("/healthz", summary="Whether the server answers", response_model=Health)
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok"}, headers={"Cache-Control": _NEVER})

    @app.get(
        "/metrics",
        summary="Metrics for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        return Response(
            await source.text(),
            media_type="text/plain; version=0.0.4",
            headers={"Cache-Control": _NEVER},
        )

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        if not (STATIC / "index.html").is_file():
            return JSONResponse({"detail": "this installation has no page"}, 404)
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": _ASK})

    app.mount("/static", _Static(directory=STATIC, check_dir=False), name="static")


class _Static(StaticFiles):
    """The page's files. Browsers ask each time for changes, so they see a new release at once."""

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        response = super().file_response(*arguments, **options)
        response.headers["Cache-Control"] = _ASK
        return response


# -- small helpers --------------------------------------------------------------------------------


def _key(sent: str) -> str:
    """The key in a path that is still percent-encoded. Raises NotFound if it is not UTF-8."""
    try:
        return unquote_to_bytes(sent).decode("utf-8")
    except UnicodeDecodeError:
        raise NotFound("there is no such picture: its key is not UTF-8") from None


def _known(header: str | None) -> Callable[[str], bool]:
    """Tells whether If-None-Match lists an ETag. Weak ones count too (RFC 9110, 13.1.2)."""
    tags = frozenset(re.findall(r'"[^"]*"|\*', header or ""))
    return lambda etag: etag in tags or "*" in tags


def _filter(bounds: list[tuple[str, str, Any]]) -> pc.Expression | None:
    """The conjunction of the bounds that are not None."""
    chosen = None
    for column, relation, value in bounds:
        if value is None:
            continue
        field = pc.field(column)
        one = {">=": field >= value, "<=": field <= value, "==": field == value}[relation]
        chosen = one if chosen is None else chosen & one
    return chosen


def _file(answer: Answer, caching: str) -> Response:
    headers = {"Cache-Control": caching if answer.etag else _NEVER}
    if answer.etag:
        headers["ETag"] = answer.etag
    if not answer.body:
        return Response(status_code=304, headers=headers)
    headers["X-Strata-Layers"] = str(answer.layers)
    headers["X-Strata-Bytes"] = str(answer.stream_bytes)
    if answer.original:
        headers["X-Strata-Original"] = "true"
    if answer.damaged is not None:
        headers["X-Strata-Damaged"] = str(answer.damaged)
    return Response(answer.body, media_type=answer.media_type, headers=headers)
