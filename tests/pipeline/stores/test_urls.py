"""URLs: secrets are never shown, names have no queries, and content decides the kind of a file."""

import base64
import gzip
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

import pipeline
from jobs import compress_dataset, decode_dataset, verify_dataset
from pipeline.compress.job import compress
from pipeline.dataset.layout import shard_name
from pipeline.decode.job import decode
from pipeline.running.command_line import run_job
from pipeline.sources.listing import expand_inputs
from pipeline.sources.shards import Shard, open_shard
from pipeline.stores.store import StorageError, Store
from pipeline.stores.urls import (
    SecretInURLError,
    place_of,
    refuse_secrets,
    without_query,
    without_secrets,
)
from pipeline.verify.job import verify
from tests.pipeline.makers import samples, tar_bytes

SECRET = "hunter2"
TOKEN = f"Xk9{SECRET}Qz7Lm2Rt5Vb8Wn1Pq"  # of no provider that is known
WITH_SECRETS = [
    f"https://me:{SECRET}@host/a.tar",
    f"https://{SECRET}@host/a.tar",
    f"HTTPS://me:{SECRET}@host/a.tar",
    f" https://me:{SECRET}@host/a.tar",
    f"https://me%3A{SECRET}@host/a.tar",
    f"https://me:a?b/c#{SECRET}@host/a.tar",
    f"https://me:a@b@{SECRET}@host/a.tar",
    f"https://me:{SECRET}@host:8080/a-{{000..999}}.tar",
    f"s3://AKIA:{SECRET}@bucket/a.tar",
    f"s3://AKIA:1/{SECRET}@bucket/a.tar",
    f"s3://AKIA:x/{SECRET}/y@bucket/a@b.tar",
    f"sftp://me:{SECRET}@host/a.tar",
    f"ftp://me:12/{SECRET}x:@host/a.tar?password={SECRET}",
    f"https://bucket.host/a.tar?X-Amz-Date=1&X-Amz-Signature={SECRET}",
    f"https://bucket.host/a.tar?AWSAccessKeyId=AKIA&Expires=1&Signature={SECRET}%3D",
    f"https://bucket.host/a.tar?X-Goog-Signature={SECRET}",
    f"https://account.host/a.tar?sv=2024&se=9&sig={SECRET}",
    f"https://account.host/a.tar?s%69g={SECRET}",
    f"https://host/a.tar?x=1;token={SECRET}",
    f"https://host/a.tar#access_token={SECRET}",
    f"https://host/a.tar?key=AIza{SECRET}{SECRET}{SECRET}",
    f"https://host/a.tar?key={SECRET}",
    f"https://host/a.tar?v=1&K={SECRET}",
    f"https://host/a.tar?t={TOKEN}",
    f"https://host/p/{TOKEN}/n/space/b/bucket/o/a.tar",
    f"https://host/p/{TOKEN.replace('Q', '%51')}/a.tar?download=true",
    f"https://host/bot/ghp_{SECRET}{SECRET}/a.tar",
    f"https://host/a.tar?from=https%3A%2F%2Fme:{SECRET}@other%2Fa.tar",
    f"s3://bucket/a.tar?X-Amz-Security-Token={SECRET}",
    f"abfs://container@account.host/a.tar?sig={SECRET}",
    f"filecache::https://me:{SECRET}@host/a.tar",
    f"simplecache::s3://bucket/a.tar?sig={SECRET}",
    f"tar://x.png::https://host/a.tar?token={SECRET}",
]
WITHOUT_SECRETS = [
    "s3://bucket/a.tar?versionId=3/L4kqtJlcpXroDTDmJ",
    "https://host/a.tar?download=true",
    "https://host/get?key=photos/a.tar&v=2",
    "https://host/a.tar?token=",
    "https://host/a?k=3&key=a.tar",
    "https://host/resolve/3a7bd3e2360a3d29eea436fcfb7e44c735d117c4/ImageNet21kTrain/a.tar",
    "https://host/550e8400-e29b-41d4-a716-446655440000/DataComp1B_Shard00012A_Rev3B_x86.tar",
    f"https://host/a.tar?id={TOKEN}",
    f"s3://bucket/{TOKEN}/a.tar",
    "http://127.0.0.1:9000/bucket/me@home/a:b@c.tar",
    "http://[::1]:9000/a@b.tar",
    "s3://bucket/me:you@home/a@b.tar",
    "s3://arn:aws:s3:eu-west-1:1234:accesspoint/mine/a@b.tar",
    "s3://bucket/a-00?.tar",
    "s3://bucket/a?b=c.tar",
    "abfs://container@account.host/a.tar",
    "sftp://me@host/a.tar",
    "github://org:repository@main/a.tar",
    "/data/me:you@home/a.tar?token=1",
    "C:a@b",
]


@pytest.mark.parametrize("url", WITH_SECRETS)
def test_a_secret_is_refused_and_not_repeated(url: str, tmp_path: Path) -> None:
    for use in (
        refuse_secrets,
        Store,
        pipeline.open_dataset,
        lambda url: expand_inputs([url]),
        lambda url: expand_inputs([str(tmp_path), url]),
    ):
        with pytest.raises(SecretInURLError, match="may hold no secrets") as caught:
            use(url)
        assert SECRET not in str(caught.value)
        assert "--input-options" in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None
    assert SECRET not in without_secrets(f"403, message='Forbidden', url='{url.strip()}'")


@pytest.mark.parametrize("url", WITHOUT_SECRETS)
def test_what_is_no_secret_is_allowed(url: str) -> None:
    refuse_secrets(url)
    assert without_secrets(f"404: {url} is not there") == f"404: {url} is not there"


def test_the_message_says_which_url() -> None:
    with pytest.raises(SecretInURLError, match=r"^https://\*\*\*@host/b\.tar: "):
        refuse_secrets("https://host/a.tar", f"https://me:{SECRET}@host/b.tar?x=1")
    with pytest.raises(SecretInURLError, match=r"^s3://bucket/a\.tar: .*X-Amz-Signature"):
        refuse_secrets(f"s3://bucket/a.tar?X-Amz-Signature={SECRET}")


@pytest.mark.parametrize("secret", [WITH_SECRETS[0], WITH_SECRETS[7], f"s3://b/set?sig={SECRET}"])
@pytest.mark.parametrize(
    ("job", "verb", "given"),
    [
        (compress_dataset, compress, ["--input", "{}", "--output", "out"]),
        (compress_dataset, compress, ["--input", "a.tar", "--output", "{}"]),
        (compress_dataset, compress, ["--input", "a.tar", "--output", "out", "--model", "{}"]),
        (decode_dataset, decode, ["--input", "{}", "--output", "out"]),
        (decode_dataset, decode, ["--input", "set", "--output", "{}"]),
        (verify_dataset, verify, ["--input", "{}"]),
    ],
)
def test_jobs_refuse_secrets_before_they_log(
    job: Any,
    verb: Any,
    given: list[str],
    secret: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [secret if word == "{}" else word for word in given]
    parsed = job.parse([*arguments, "--log", str(tmp_path / "log")])
    options = parsed[0] if isinstance(parsed, tuple) else parsed
    assert run_job(partial(verb, options)) == 2
    said = capfd.readouterr()
    assert "may hold no secrets" in said.err
    assert SECRET not in said.err + said.out
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(SECRET.encode() not in path.read_bytes() for path in written)


# -- queries --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "stem"),
    [
        ("/data/a.tar", "a"),
        ("/data/a.tar?b", "a.tar?b"),
        ("/data/a.tar#b", "a.tar#b"),
        ("s3://bucket/a.tar.gz", "a"),
        ("s3://bucket/a.tar?versionId=x", "a"),
        ("s3://bucket/a#1.tar", "a#1"),
        ("s3://bucket/a.tar#1.tar", "a.tar#1"),
        ("s3://bucket/a?b=c.tar", "a?b=c"),
        ("gs://bucket/a.tar.gz#1234", "a"),
        ("https://host/a.tar?download=true", "a"),
        ("https://host/a.tgz#part", "a"),
        ("https://host/get?file=x/y.tar", "get"),
    ],
)
def test_names_come_without_the_query(url: str, stem: str) -> None:
    assert Shard(url, 1, "e").stem == stem


def test_names_of_old_stay_and_queries_tell_shards_apart() -> None:
    assert shard_name(Shard("s3://bucket/a-000.tar", 1000, "abc"), "f") == "a-000-4c08bcee3900"
    urls = [f"https://host/a.tar{query}" for query in ("", "?v=1", "?v=2")]
    names = {shard_name(Shard(url, 1, "e"), "f") for url in urls}
    assert len(names) == 3
    assert {name.rsplit("-", 1)[0] for name in names} == {"a"}
    assert [without_query(url) for url in urls] == ["https://host/a.tar"] * 3


TAR = tar_bytes(samples(2))


class Handler(BaseHTTPRequestHandler):
    """Tars by path and query; ``/private`` wants a password, ``/moved`` leads to a signed URL."""

    protocol_version = "HTTP/1.1"
    asked: list[str]

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        known = base64.b64encode(f"me:{SECRET}".encode()).decode()
        status, body, headers = 200, TAR, {"ETag": f'"{self.path}"'}
        if url.path == "/private.tar" and self.headers.get("Authorization") != f"Basic {known}":
            status, body = 401, b""
        elif url.path == "/moved.tar":
            status, body, headers = 302, b"", {"Location": f"/refused.tar?sig={SECRET}"}
        elif url.path == "/refused.tar":
            status, body = 403, b""
        elif url.path.strip("/") == "page":
            body = f'<a href="/page/a.tar?sig={SECRET}">a</a>'.encode()
            headers = {"Content-Type": "text/html"}
        elif url.path.endswith("gz") or "gz" in query:
            body = gzip.compress(TAR)
        elif url.path not in ("/a.tar", "/page/a.tar", "/private.tar", "/get"):
            status, body = 404, b""
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.daemon_threads = True
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


@pytest.mark.parametrize(
    "path",
    ["/a.tar?download=true", "/a.tar#part", "/a.tar.gz?x=1", "/a.tgz?x=/", "/get?f=1&gz=1"],
)
def test_shards_with_a_query_are_read_as_what_they_are(
    server: str, path: str, tmp_path: Path
) -> None:
    (shard,) = expand_inputs([f"{server}{path}"])
    assert shard.url == f"{server}{path}".partition("#")[0]
    with open_shard(shard, tmp_path) as opened:
        assert [sample.key for sample in opened.samples] == ["s0000", "s0001"]


def test_inputs_that_differ_in_their_query_only(server: str) -> None:
    queries = ["?v=1", "?v=2", "?v=2#a", "?v=2#b", ""]
    shards = expand_inputs([f"{server}/a.tar{query}" for query in queries])
    assert [shard.url for shard in shards] == [f"{server}/a.tar{q}" for q in ("", "?v=1", "?v=2")]
    with pytest.raises(StorageError, match=r"none\.tar\?v=1: there is no such file"):
        expand_inputs([f"{server}/none.tar?v=1"])


def test_passwords_for_http_come_as_the_message_says(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{server}/private.tar"
    with pytest.raises(StorageError, match=r"private\.tar: cannot be read: 401"):
        expand_inputs([url])
    header = "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login me password {SECRET}\n")
    monkeypatch.setenv("NETRC", str(netrc))
    options: list[dict[str, Any]] = [
        {"headers": {"Authorization": header}},
        {"client_kwargs": {"trust_env": True}},
    ]
    for given in options:
        (shard,) = expand_inputs([url], given)
        with open_shard(shard, tmp_path, given) as opened:
            assert len(opened.samples) == 2


def test_signed_addresses_from_servers_are_not_repeated(server: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="403") as caught:
        expand_inputs([f"{server}/moved.tar"])
    assert SECRET not in str(caught.value)
    with (
        pytest.raises(OSError, match="403") as refused,
        open_shard(Shard(f"{server}/moved.tar", 1, ""), tmp_path),
    ):
        pass
    assert SECRET not in str(refused.value)
    assert "/refused.tar" in str(refused.value)


def test_signed_addresses_on_a_page_are_refused(server: str) -> None:
    with pytest.raises(SecretInURLError, match=r"/page/a\.tar: ") as caught:
        expand_inputs([f"{server}/page/*"])
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("/a/b.tar", ""),
        ("a.tar", ""),
        ("file:///a.tar", ""),
        ("https://Data.example.org:8443/x/y.tar?z", "https://data.example.org:8443"),
        ("HTTP://a.org\\@b.org/x", "http://a.org"),
        ("http://a.org#@b.org/x", "http://a.org"),
        ("s3://Bucket/key", "s3://Bucket"),
        ("gs://bucket", "gs://bucket"),
    ],
)
def test_where_requests_go(url: str, place: str) -> None:
    assert place_of(url) == place
