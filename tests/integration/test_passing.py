"""What a store does to a job, and whether the job may hope: real requests, real refusals."""

from typing import Any

import pytest

from codec.errors import StrataError
from pipeline.reader.dataset import open_dataset
from pipeline.sources.listing import expand_inputs
from pipeline.stores.store import Store
from tests.integration.conftest import free_port
from tests.integration.faults import FaultProxy
from tests.integration.servers import S3Server
from tests.pipeline.makers import samples, tar_bytes

pytestmark = pytest.mark.integration


@pytest.fixture
def url(moto_server: S3Server) -> str:
    store = Store(f"{moto_server.url}/passing", moto_server.options())
    store.create("in/x.tar", tar_bytes(samples(1)))
    store.create("set/dataset.json", b'{"parameters": {"format": 1}, "fingerprint": "f"}')
    return store.url


def hopes(url: str, options: dict[str, Any]) -> dict[str, bool]:
    """What the driver and a worker of a job say of a store, and whether it may pass."""
    found = {}
    for ask in (
        lambda: expand_inputs([f"{url}/in/x.tar"], options),
        lambda: open_dataset(f"{url}/set", options),
    ):
        with pytest.raises(StrataError) as caught:
            ask()
        found[str(caught.value)] = caught.value.passing
    return found


def hasty(server: S3Server, endpoint: str, patience: float = 5) -> dict[str, Any]:
    """Options with which requests are not repeated."""
    retries = {"mode": "standard", "total_max_attempts": 1}
    return server.options(endpoint, read_timeout=patience, connect_timeout=5, retries=retries)


def test_faults_of_networks_and_stores_pass(url: str, moto_server: S3Server) -> None:
    with FaultProxy(moto_server.endpoint) as proxy:
        options = hasty(moto_server, proxy.endpoint)
        proxy.slow_down(1.0)
        found = hopes(url, options)
        assert all(found.values()), found
        proxy.clear()
        proxy.delay(1)
        found = hopes(url, hasty(moto_server, proxy.endpoint, patience=0.2))
        assert all(found.values()), found
        proxy.clear()
        proxy.truncate(path="dataset.json")
        with pytest.raises(StrataError) as caught:
            open_dataset(f"{url}/set", options)
        assert caught.value.passing
    nobody = hasty(moto_server, f"http://127.0.0.1:{free_port()}")
    found = hopes(url, nobody)
    assert all(found.values()), found


def test_refusals_stay(url: str, moto_server: S3Server) -> None:
    options = hasty(moto_server, moto_server.endpoint)
    found = hopes(f"{url}/elsewhere", options)
    found |= hopes("s3://no-such-bucket/x", options)
    found |= hopes(url, {**options, "profile": "nobody"})
    assert len(found) == 6
    assert not any(found.values()), found


def test_a_store_that_knows_nobody_stays(swift_server: S3Server) -> None:
    options = {**hasty(swift_server, swift_server.endpoint), "secret": "wrong"}
    found = hopes(f"{swift_server.url}/x", options)
    assert not any(found.values()), found
