"""The driver can read every error of a worker that decodes or verifies."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.dataset import models
from pipeline.decode import selection
from pipeline.decode.dataset_worker import HandOutSettings
from pipeline.decode.layer_rule import LayerRule
from pipeline.decode.request import DecodeOptions
from pipeline.decode.worker import ShardDecoder
from pipeline.stores.store import StorageError
from pipeline.verify import worker as verify_worker
from pipeline.verify.worker import ShardVerifier, VerifySettings
from tests.integration.fakes import OddError
from tests.pipeline.conftest import Make
from tests.pipeline.makers import samples, write_tar


def unpicklable() -> Exception:
    class HereError(Exception):
        """Nobody finds its class from elsewhere."""

    return HereError("no luck 7")


FAULTS = [OddError(reason="no luck", code=7), unpicklable(), SystemExit("no luck 7")]


@pytest.fixture(params=["decoder", "verifier"])
def ask(
    request: pytest.FixtureRequest,
    make_dataset: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[BaseException], dict[str, Callable[[], Any]]]:
    """Give a worker the fault that it meets, and get the calls in which it does."""
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", samples(2)))])
    (file,) = dataset.files

    def make() -> ShardDecoder | ShardVerifier:
        if request.param == "verifier":
            return ShardVerifier(VerifySettings(dataset.url, dataset.model_id, dataset.num_layers))
        options = DecodeOptions(dataset.url, str(tmp_path / "out"))
        return ShardDecoder(HandOutSettings(options, "f", LayerRule(4, 4)))

    def meet(fault: BaseException) -> dict[str, Callable[[], Any]]:
        ready = make()
        ready.ready()

        def fail(*_: Any, **__: Any) -> None:
            raise fault

        monkeypatch.setattr(selection, "to_rows", fail)
        monkeypatch.setattr(verify_worker, "file_sha256", fail)
        monkeypatch.setattr(models, "load_codec", fail)
        return {"ready": make().ready, "run": lambda: ready.run(file)}

    return meet


@pytest.mark.parametrize("call", ["ready", "run"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_errors_reach_the_driver_in_words(ask: Any, fault: BaseException, call: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        ask(fault)[call]()
    arrived = pickle.loads(pickle.dumps(caught.value))
    assert str(arrived) == f"{type(fault).__name__}: no luck 7"
    assert caught.value.__context__ is None  # its frames would keep pictures in memory


@pytest.mark.parametrize("call", ["ready", "run"])
@pytest.mark.parametrize("passing", [True, False])
def test_strata_errors_stay_what_they_are(ask: Any, passing: bool, call: str) -> None:
    with pytest.raises(StorageError, match="no answer") as caught:
        ask(StorageError("no answer", passing=passing))[call]()
    assert pickle.loads(pickle.dumps(caught.value)).passing is passing
