"""Keys, lists, errors and headers: everything around the pictures."""

import json
import re
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from fastapi.testclient import TestClient

from codec import EncodedImage
from pipeline.reader.dataset import Dataset
from pipeline.serving.service import PreviewService, Settings
from tests.pipeline.makers import ToyCodec, picture
from tests.pipeline.serving.conftest import HOSTILE, url
from tests.pipeline.serving.test_pictures import shown


@pytest.mark.parametrize(
    ("path", "seed"),
    [
        ("/v1/images/a%2Fb", 9),
        ("/v1/images/a/b", 9),
        ("/v1/images/a%2Fb%2Finfo", 10),
        (f"/v1/images/{quote(HOSTILE, safe='')}", 11),
    ],
)
def test_keys_may_hold_anything(client: TestClient, path: str, seed: int) -> None:
    answer = client.get(f"{path}?format=png")
    assert answer.status_code == 200
    assert (shown(answer.content) == picture(seed)).all()


def test_what_is_known_of_a_picture(client: TestClient, dataset: Dataset) -> None:
    told = client.get("/v1/images/a%2Fb/info").json()
    stream = dataset.record("a/b").encoded
    assert told["key"] == "a/b"
    assert (told["width"], told["height"], told["layers"]) == (32, 24, 4)
    sizes = [stream.truncate(layers).nbytes for layers in (1, 2, 3, 4)]
    assert told["cumulative_bytes"] == sizes
    assert told["bpp"] == pytest.approx([8 * size / (32 * 24) for size in sizes])
    assert told["source_format"] == "png"
    assert told["has_original"] is False
    assert told["original_from"] is None
    assert told["model_id"] == dataset.model_id
    assert client.get("/v1/images/a%2Fb%2Finfo/info").json()["key"] == "a/b/info"
    assert client.get("/v1/images/a/b/info").json()["key"] == "a/b"


@pytest.mark.parametrize(
    "path",
    [
        "nothing",
        "broken",  # a sample that is no picture
        "",
        "s0000/",
        "..%2F..%2Fdataset.json",
        "..%2Fdataset.json",
        "%2Fetc%2Fpasswd",
        "/etc/passwd",
        "s0000%00",
        "%FF%FE",
        "%",
        "a" * 5000,
        "data",
        "models%2F",
    ],
)
def test_a_key_is_a_key_and_no_path(client: TestClient, path: str) -> None:
    for prefix in ("/v1/images/", "/v1/originals/"):
        answer = client.get(prefix + path)
        assert answer.status_code == 404
        assert list(answer.json()) == ["detail"]
    assert client.get(f"/v1/images/{path}/info").status_code == 404


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({"layers": 0}, "layers"),
        ({"layers": 5}, "layers"),
        ({"layers": -1}, "layers"),
        ({"layers": "two"}, "layers"),
        ({"layers": 1e9}, "layers"),
        ({"max_side": 15}, "max_side"),
        ({"max_side": 4097}, "max_side"),
        ({"format": "bmp"}, "format"),
        ({"format": ""}, "format"),
    ],
)
def test_parameters_that_are_not_allowed(
    client: TestClient, parameters: dict[str, object], word: str
) -> None:
    answer = client.get(url("s0000", **parameters))
    assert answer.status_code == 422
    assert word in answer.json()["detail"]
    assert answer.headers["cache-control"] == "no-store"


def test_pages_go_on_where_they_ended(client: TestClient, dataset: Dataset) -> None:
    keys: list[str] = []
    after = ""
    for _ in range(20):
        page = client.get(f"/v1/images?limit=4{after}").json()
        assert len(page["items"]) <= 4
        keys += [item["key"] for item in page["items"]]
        if page["next"] is None:
            break
        after = f"&after={quote(page['next'], safe='')}"
    assert keys == list(dataset.keys())
    assert page["items"][-1].keys() == {
        *("key", "width", "height", "layers", "cumulative_bytes", "psnr", "has_original")
    }


@pytest.mark.parametrize(
    ("query", "keys"),
    [
        ("search=LARGE", ["large"]),
        ("search=" + quote("<img", safe=""), [HOSTILE]),
        ("min_width=61", ["large"]),
        ("min_width=33&max_width=60", ["glass"]),
        ("min_height=40&max_height=40", ["glass"]),
        ("format=gif", []),
        ("search=s000&format=png", [f"s{number:04d}" for number in range(6)]),
    ],
)
def test_lists_of_some_pictures(client: TestClient, query: str, keys: list[str]) -> None:
    found: list[str] = []
    after = ""
    for _ in range(20):
        page = client.get(f"/v1/images?{query}{after}").json()
        found += [item["key"] for item in page["items"]]
        if page["next"] is None:
            break
        after = f"&after={quote(page['next'], safe='')}"
    assert found == keys


@pytest.mark.parametrize("cursor", ["x", "bm90IGEgY3Vyc29y", "é", "%00", "eyJhIjoxfQ", "W10", "MQ"])
def test_a_cursor_that_was_never_given(client: TestClient, cursor: str) -> None:
    answer = client.get(f"/v1/images?after={cursor}")
    assert answer.status_code == 400
    assert "cursor" in answer.json()["detail"]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=501", "limit=x", "min_width=0", "max_width=-1"]
)
def test_lists_that_are_not_allowed(client: TestClient, query: str) -> None:
    assert client.get(f"/v1/images?{query}").status_code == 422


def test_the_dataset(client: TestClient, dataset: Dataset) -> None:
    told = client.get("/v1/dataset").json()
    assert told["pictures"] == len(dataset)
    assert (told["name"], told["layers"], told["lossless"]) == ("dataset", 4, True)
    assert told["model_id"] == dataset.model_id
    assert dataset.url not in json.dumps(told)  # where it lies is nobody's business


@pytest.mark.parametrize(("added", "quick"), [(0.0, 4), (0.3, 1)])
def test_how_many_layers_are_quick_here(
    dataset: Dataset, toy: ToyCodec, monkeypatch: pytest.MonkeyPatch, added: float, quick: int
) -> None:
    """By what they take of the processor, however busy it is; the page asks for no more."""
    decode = toy.decode

    def works(encoded: Sequence[EncodedImage], **options: Any) -> list[np.ndarray]:
        until = time.thread_time() + added * (encoded[0].num_layers > 1)
        while time.thread_time() < until:
            pass
        return decode(encoded, **options)

    monkeypatch.setattr(toy, "decode", works)
    service = PreviewService.open(Settings(dataset.url))
    try:
        assert service.facts()["quick_layers"] == quick
    finally:
        service.close()


def test_the_page_may_load_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "script-src 'self'" in policy
    for address in re.findall(r"""(?:src|href)=["']([^"'#]+)""", page.text):
        assert client.get(address).status_code == 200, address
    assert page.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        *("/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static/%00"),
        *("/static", "/static/", "/static//etc/passwd", "/static/%2Fetc%2Fpasswd", "/static/%FF"),
        *("/static/" + "a" * 5000, "/docs", "/redoc", "/v1", "/v1/images/../../etc/passwd"),
    ],
)
def test_nothing_else_is_served(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert b"import" not in answer.content


def test_other_methods_are_refused(client: TestClient) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        answer = client.request(method, url("s0000"))
        assert answer.status_code == 405
        assert answer.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (url("s0000", layers=1, max_side=16), 200),
        (url("a/b", format="png"), 200),
        (url("s0000", layers=99), 422),
        (url("nothing"), 404),
        ("/v1/images/s0000/info", 200),
        ("/v1/images/s0000/stream?layers=2", 200),
        ("/v1/originals/s0000", 404),
        ("/v1/images?limit=2", 200),
        ("/v1/images?after=x", 400),
        *((path, 200) for path in ("/v1/dataset", "/healthz", "/openapi.json", "/")),
        ("/static/main.js", 200),
        ("/static/none.js", 404),
    ],
)
def test_head_says_what_get_says_without_the_body(
    client: TestClient, path: str, status: int
) -> None:
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (status, b"")
    assert head.headers == get.headers
    assert int(head.headers["content-length"]) == len(get.content)


def test_head_of_what_a_client_has(client: TestClient) -> None:
    etag = client.head(url("s0000")).headers["etag"]
    for method in ("HEAD", "GET"):
        answer = client.request(method, url("s0000"), headers={"If-None-Match": etag})
        assert answer.status_code == 304
    # and it was made once
    assert client.get(url("s0000")).headers["etag"] == etag
    figures = client.get("/metrics").text
    assert 'strata_preview_cache_total{result="miss"} 1.0' in figures
    assert 'strata_preview_cache_total{result="hit"} 1.0' in figures


def test_keys_below_a_prefix(client: TestClient) -> None:
    """As a route prefix of Serve or --root-path of uvicorn make it."""
    below = TestClient(client.app, base_url="http://127.0.0.1", root_path="/previews")
    below.portal = client.portal  # the same event loop
    for key, seed in (("a/b", 9), ("a/b/info", 10), (HOSTILE, 11)):
        answer = below.get(f"/previews{url(key, format='png')}")
        assert answer.status_code == 200, key
        assert (shown(answer.content) == picture(seed)).all()


def test_figures_are_by_route_and_not_by_key(client: TestClient) -> None:
    for key in ("s0000", "s0001", "nothing"):
        client.get(url(key, layers=1))
    client.get("/v1/images?limit=2")
    text = client.get("/metrics").text
    assert client.get("/healthz").json() == {"status": "ok"}
    route = 'route="/v1/images/{key:path}"'
    assert f'strata_preview_requests_total{{{route},status="200"}} 2.0' in text
    assert f'strata_preview_requests_total{{{route},status="404"}} 1.0' in text
    assert 'strata_preview_requests_total{route="/v1/images",status="200"} 1.0' in text
    assert f"strata_preview_seconds_count{{{route}}} 3.0" in text
    assert "s0000" not in text
