"""Which requests the server answers."""

import base64
from pathlib import Path

import pytest

from jobs import serve_previews
from pipeline.reader.dataset import Dataset
from pipeline.serving.access import Access
from pipeline.serving.job import _is_loopback
from tests.pipeline.serving.conftest import Client

TOKEN = "0123456789abcdef"
PATHS = ["/", "/v1/dataset", "/v1/images", "/v1/images/s0000", "/metrics", "/static/viewer.js"]


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000", "192.0.2.7"]
)
def test_addresses_and_localhost_are_answered(dataset: Dataset, connect: Client, host: str) -> None:
    assert connect(dataset).get("/v1/dataset", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "[::1", "a@b", "*"]
)
def test_foreign_names_are_not(dataset: Dataset, connect: Client, host: str) -> None:
    """A page of evil.example may let this name point here, and would read every picture."""
    client = connect(dataset)
    for path in [*PATHS, "/healthz"]:
        answer = client.get(path, headers={"Host": host})
        assert answer.status_code == 421, path
        assert "--host-names" in answer.json()["detail"]


def test_more_names(dataset: Dataset, connect: Client) -> None:
    client = connect(dataset, Access(("Pictures.example",)))
    assert client.get("/healthz", headers={"Host": "pictures.example:80"}).status_code == 200
    assert client.get("/healthz", headers={"Host": "x.pictures.example"}).status_code == 421
    assert connect(dataset, Access(("*",))).get("/", headers={"Host": "x"}).status_code == 200


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "Basic"])
def test_a_token(dataset: Dataset, connect: Client, scheme: str) -> None:
    client = connect(dataset, Access(token=TOKEN))
    for path in PATHS:
        for wrong in ({}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": "Basic %"}):
            answer = client.get(path, headers=wrong)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"].startswith("Basic")
    assert client.get("/healthz").status_code == 200
    sent = base64.b64encode(f"me:{TOKEN}".encode()).decode() if scheme == "Basic" else TOKEN
    for path in PATHS:
        assert client.get(path, headers={"Authorization": f"{scheme} {sent}"}).status_code == 200
    assert TOKEN not in repr(Access(token=TOKEN))


def test_other_pages_may_not_embed_answers(dataset: Dataset, connect: Client) -> None:
    client = connect(dataset)
    for path in [*PATHS, "/v1/images/none"]:
        headers = client.get(path).headers
        assert headers["cross-origin-resource-policy"] == "same-origin"


def test_the_token_comes_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    options = serve_previews.parse(["--input", "x", "--token-file", str(path), "--host-names", "a"])
    assert options.access == Access(("a",), TOKEN)
    assert TOKEN not in repr(options)
    for content in ("short", "two\nlines of more than sixteen"):
        path.write_text(content)
        with pytest.raises(SystemExit):
            serve_previews.parse(["--input", "x", "--token-file", str(path)])
    assert "must hold one line" in capsys.readouterr().err


def test_what_is_loopback() -> None:
    assert all(map(_is_loopback, ["127.0.0.1", "127.3.4.5", "::1", "localhost"]))
    assert not any(map(_is_loopback, ["0.0.0.0", "::", "192.0.2.7", "name"]))
