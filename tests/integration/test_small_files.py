"""Many small files of S3 by signed addresses, where signatures are checked, and with faults."""

from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from pipeline.stores.filesystems import open_filesystem
from pipeline.stores.small_files import SmallFile, read_small_files
from tests.integration.faults import FaultProxy
from tests.integration.servers import BUCKET, S3Server

pytestmark = pytest.mark.integration
NAMES = ("a.png", "a b+c.png", "caf\u00e9 [1] {2} #3.png", "100%25 &=?.png", "x/y~(z)'.json")
SIGNED = "X-Amz-Signature="


@pytest.fixture(params=["moto_server", "swift_server"])
def server(request: pytest.FixtureRequest) -> S3Server:
    found: S3Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def proxy(server: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(server.endpoint) as proxy:
        yield proxy


class Files:
    """Small files in a folder of the server, read through the proxy."""

    def __init__(self, server: S3Server, proxy: FaultProxy, folder: str, count: int = 0) -> None:
        fs = server.filesystem()
        names = [*NAMES, *(f"{number:03d}.json" for number in range(count))]
        self.content = {f"{BUCKET}/{folder}/{name}": name.encode() * 9 for name in names}
        for path, data in self.content.items():
            fs.pipe_file(path, data, **({"ACL": "public-read"} if server.name == "moto" else {}))
        listed = fs.find(f"{BUCKET}/{folder}", detail=True)
        assert sorted(listed) == sorted(self.content)
        self.versions = {path: entry["ETag"].strip('"') for path, entry in listed.items()}
        self.server, self.proxy = server, proxy

    def read(self, **options: Any) -> list[SmallFile | None]:
        fs, _ = open_filesystem(self.server.url, self.server.options(self.proxy.endpoint) | options)
        return read_small_files(fs, list(self.content), [*map(len, self.content.values())])

    def came(self, found: list[SmallFile | None]) -> bool:
        """Whether all files came, whatever is known of their versions."""
        return [one and one.data for one in found] == [*self.content.values()]

    def asked(self) -> Counter[str]:
        """How often each path was asked for by a signed address, as "signed", and otherwise."""
        return Counter(
            "signed" if SIGNED in one.path else unquote(urlsplit(one.path).path)
            for one in self.proxy.exchanges
        )


def test_each_file_is_one_signed_request(server: S3Server, proxy: FaultProxy, folder: str) -> None:
    files = Files(server, proxy, folder, 50)
    found = files.read()
    assert found == [SmallFile(data, files.versions[path]) for path, data in files.content.items()]
    assert files.asked() == {"signed": len(files.content)}


def test_a_file_that_has_grown_comes_with_one_byte_more(
    server: S3Server, proxy: FaultProxy, folder: str
) -> None:
    files = Files(server, proxy, folder)
    fs, _ = open_filesystem(server.url, server.options())
    path = next(iter(files.content))
    (one,) = read_small_files(fs, [path], [len(files.content[path]) - 3])
    assert one is not None
    assert one.data == files.content[path][:-2]


def test_what_fails_is_read_by_s3fs(moto_server: S3Server, folder: str) -> None:
    with FaultProxy(moto_server.endpoint) as proxy:
        files = Files(moto_server, proxy, folder, 30)
        broken = proxy.truncate(path=f"00[1-9]\\.json.*{SIGNED}")
        assert files.came(files.read())
        assert broken.hits == 9
        asked = files.asked()
        assert asked.pop("signed") == len(files.content)
        assert asked == {f"/{BUCKET}/{folder}/00{number}.json": 1 for number in range(1, 10)}


def test_a_store_that_takes_no_signed_addresses_is_asked_once(
    moto_server: S3Server, folder: str
) -> None:
    with FaultProxy(moto_server.endpoint) as proxy:
        files = Files(moto_server, proxy, folder, 5)
        proxy.slow_down(path=SIGNED)
        assert files.came(files.read())
        assert files.asked()["signed"] == 1


def test_without_credentials_nothing_is_signed(moto_server: S3Server, folder: str) -> None:
    with FaultProxy(moto_server.endpoint) as proxy:
        files = Files(moto_server, proxy, folder)
        assert files.came(files.read(anon=True, key=None, secret=None))
        assert files.asked()["signed"] == 0
        assert len(proxy.exchanges) == len(files.content)


@pytest.mark.parametrize(
    "options",
    [{"requester_pays": True}, {"s3_additional_kwargs": {"ExpectedBucketOwner": "123456789012"}}],
)
def test_what_needs_headers_is_read_by_s3fs(
    moto_server: S3Server, folder: str, options: dict[str, Any]
) -> None:
    with FaultProxy(moto_server.endpoint) as proxy:
        files = Files(moto_server, proxy, folder)
        assert files.came(files.read(**options))
        assert files.asked()["signed"] == 0


def test_other_stores_say_nothing_of_versions(tmp_path: Any) -> None:
    fs, path = open_filesystem(str(tmp_path))
    assert read_small_files(fs, [f"{path}/a"], [1]) == [None]
