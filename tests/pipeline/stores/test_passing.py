"""Which errors say that another attempt may succeed, also after they were pickled."""

import errno
import importlib
import pickle
import pkgutil
import ssl
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp.http_exceptions import ContentLengthError
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
)
from fsspec.exceptions import FSTimeoutError
from s3fs.errors import translate_boto_error

import codec
import pipeline
from codec.errors import CorruptStreamError, StrataError
from pipeline.dataset.manifest_writer import NewerManifestError
from pipeline.reader.dataset import DatasetError, open_dataset
from pipeline.sources.tar_members import ShardError
from pipeline.stores.filesystems import StorageError, storage_errors
from pipeline.stores.passing import causes, may_pass
from pipeline.stores.store import Store

URL = "http://127.0.0.1:1"


def s3(code: str, status: int) -> Exception:
    """What s3fs raises for an answer of S3."""
    answer = {
        "Error": {"Code": code, "Message": "said so"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    error = translate_boto_error(ClientError(answer, "GetObject"))  # type: ignore[arg-type]
    assert isinstance(error, OSError)
    return error


def http(status: int) -> Exception:
    request: Any = SimpleNamespace(real_url=URL)
    return aiohttp.ClientResponseError(request, (), status=status)


def caused_by(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


PASSING = {
    "no answer": TimeoutError("no answer"),
    "fsspec's patience": FSTimeoutError(),
    "reset": ConnectionResetError(errno.ECONNRESET, "reset"),
    "no route": OSError(errno.EHOSTUNREACH, "no route to host"),
    "full disk": OSError(errno.ENOSPC, "no space left on device"),
    "mount": OSError(errno.ESTALE, "stale file handle"),
    "no connection": EndpointConnectionError(endpoint_url=URL),
    "no connection in time": ConnectTimeoutError(endpoint_url=URL),
    "silence": ReadTimeoutError(endpoint_url=URL),
    "cut body": ResponseStreamingError(error="cut"),
    "cut HTTP body": aiohttp.ClientPayloadError("not all there"),
    "cut, which aiohttp's parser calls a 400": caused_by(
        aiohttp.ClientPayloadError(), ContentLengthError("received 24 of 49 bytes")
    ),
    "disconnected": aiohttp.ServerDisconnectedError(),
    "SlowDown": s3("SlowDown", 503),
    "503 to a HEAD": s3("503", 503),
    "InternalError": s3("InternalError", 500),
    "in the body of a 200": s3("InternalError", 200),
    "RequestTimeout": s3("RequestTimeout", 400),
    "BadDigest": s3("BadDigest", 400),
    "TooManyRequests": s3("TooManyRequests", 429),
    "HTTP 502": http(502),
    "hidden by fsspec": caused_by(FileNotFoundError(URL), http(503)),
    "hidden deeper": caused_by(ValueError("?"), caused_by(OSError("?"), TimeoutError())),
    "Strata's own": caused_by(ValueError("?"), StrataError("wait", passing=True)),
}
STAYING = {
    "no file": FileNotFoundError("x"),
    "no rights": PermissionError(errno.EACCES, "x"),
    "read-only disk": OSError(errno.EROFS, "read-only file system"),
    "no credentials": NoCredentialsError(),
    "NoSuchKey": s3("NoSuchKey", 404),
    "NoSuchBucket": s3("NoSuchBucket", 404),
    "AccessDenied": s3("AccessDenied", 403),
    "403 to a HEAD": s3("403", 403),
    "ExpiredToken": s3("ExpiredToken", 400),
    "SignatureDoesNotMatch": s3("SignatureDoesNotMatch", 403),
    "an unknown code, which s3fs makes EIO": s3("Whatever", 400),
    "NotImplemented": s3("NotImplemented", 501),
    "HTTP 401": http(401),
    "certificate": caused_by(
        aiohttp.ClientConnectionError(), ssl.SSLCertVerificationError("self-signed")
    ),
    "a mistake": TypeError("unexpected keyword"),
    "Strata's own": caused_by(ValueError("?"), ShardError("cut")),
}


@pytest.mark.parametrize("name", PASSING)
def test_faults_that_pass(name: str) -> None:
    assert may_pass(PASSING[name])
    with pytest.raises(StorageError, match="s3://b: cannot be read") as caught:  # noqa: SIM117
        with storage_errors("s3://b", "cannot be read"):
            raise PASSING[name]
    assert caught.value.passing


@pytest.mark.parametrize("name", STAYING)
def test_faults_that_stay(name: str) -> None:
    assert not may_pass(STAYING[name])
    with pytest.raises(StorageError, match="s3://b: cannot be read") as caught:  # noqa: SIM117
        with storage_errors("s3://b", "cannot be read"):
            raise STAYING[name]
    assert not caught.value.passing


def test_what_was_tried_before_does_not_count() -> None:
    """A store that was asked twice: there is no such file, and no answer about the folder."""
    error = TimeoutError("no answer")
    error.__context__ = s3("404", 404)
    assert may_pass(error)


def kinds(base: type[StrataError] = StrataError) -> Iterator[type[StrataError]]:
    yield base
    for kind in base.__subclasses__():
        if kind.__module__.startswith(("codec", "pipeline")):
            yield from kinds(kind)


def sent(error: Exception) -> Any:
    return pickle.loads(pickle.dumps(error))


def test_errors_stay_what_they_are_on_their_way_to_the_driver() -> None:
    for package in (codec, pipeline):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    found = list(kinds())
    assert {ShardError, StorageError, DatasetError, CorruptStreamError} <= {*found}
    for kind in found:
        assert kind.passing is (kind is NewerManifestError)
        for passing in (None, True, False):
            error = kind("what to do")
            if passing is not None:
                error.passing = passing
            arrived = sent(error)
            assert type(arrived) is kind
            assert str(arrived) == "what to do"
            assert arrived.passing is (kind.passing if passing is None else passing)
    stream = sent(CorruptStreamError("cut", 3))
    assert (str(stream), stream.layer, stream.passing) == ("cut", 3, False)


@pytest.mark.parametrize(
    ("fault", "passing"),
    [(TimeoutError("no answer"), True), (s3("503", 503), True), (s3("AccessDenied", 403), False)],
)
def test_a_dataset_that_cannot_be_opened(
    fault: Exception, passing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(self: Store, name: str, most: int) -> bytes:
        raise fault

    monkeypatch.setattr(Store, "read", read)
    with pytest.raises(DatasetError, match="memory://b/set") as caught:
        open_dataset("memory://b/set")
    assert sent(caught.value).passing is passing


@pytest.mark.parametrize(
    "make",
    [
        lambda: Store("s3://bucket/x", {"profile": "nobody-has-this"}),
        lambda: Store("nosuch://bucket/x"),
        lambda: open_dataset("memory://nowhere/set"),
    ],
)
def test_what_must_be_put_right_stays(make: Callable[[], object]) -> None:
    with pytest.raises(StrataError) as caught:
        make()
    assert not caught.value.passing


def test_causes_in_a_circle_end() -> None:
    first, second = OSError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert list(causes(first)) == [first, second]
