"""The serving job with a Serve that already runs, and at its end; without Ray."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve import context

from codec.errors import StrataError
from pipeline.running.options import OptionError
from pipeline.serving import job
from pipeline.serving.options import APPLICATION, ServeOptions
from tests.pipeline.conftest import Make
from tests.pipeline.makers import samples, write_tar


def running(*applications: str, status: str = "RUNNING") -> Any:
    """A Serve with these applications."""
    found = {name: SimpleNamespace(status=status) for name in applications}
    return SimpleNamespace(status=lambda: SimpleNamespace(applications=found))


@pytest.mark.parametrize(
    ("listens", "applications", "words"),
    [
        (None, [], None),  # no Serve yet
        (("127.0.0.1", 8000), ["others"], None),
        (("127.0.0.1", 8001), [], "listens at 127.0.0.1:8001: use --host 127.0.0.1 --port 8001"),
        (("0.0.0.0", 8000), [], "use --host 0.0.0.0 --port 8000"),
        (("127.0.0.1", 8000), ["others", APPLICATION], "this cluster serves previews already"),
    ],
)
def test_a_serve_that_runs_already_is_not_taken_over(
    monkeypatch: pytest.MonkeyPatch,
    listens: tuple[str, int] | None,
    applications: list[str],
    words: str | None,
) -> None:
    """Serve itself would listen elsewhere than we say, and show the other job's users our data."""
    config = listens and SimpleNamespace(host=listens[0], port=listens[1])
    client = config and SimpleNamespace(http_config=config)
    monkeypatch.setattr(context, "_get_global_client", lambda **_: client)
    options = ServeOptions(dataset="x")
    if words is None:
        job.check_serve(running(*applications), options)
    else:
        with pytest.raises(StrataError, match=words):
            job.check_serve(running(*applications), options)


def unreachable() -> None:
    raise ConnectionError("the cluster has gone")


@pytest.mark.parametrize(
    ("serve", "words"),
    [
        (running(APPLICATION, status="DEPLOY_FAILED"), "the server is DEPLOY_FAILED"),
        (running("others"), "the server is gone"),
        (SimpleNamespace(status=unreachable), "does not answer any more: the cluster has gone"),
    ],
)
def test_a_server_that_ends_by_itself_ends_the_job_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], serve: Any, words: str
) -> None:
    monkeypatch.setattr(job, "_CHECK_SECONDS", 0.01)
    assert job.wait(serve, threading.Event()) == 1
    assert words in capsys.readouterr().err


def test_a_server_that_is_asked_to_end_ends_with_0(monkeypatch: pytest.MonkeyPatch) -> None:
    ending = threading.Event()
    looks = iter([running(APPLICATION), SimpleNamespace(status=unreachable), running(APPLICATION)])

    def status() -> Any:
        """Ray may miss a look or two: its controller restarts."""
        look = next(looks, None)
        if look is None:
            ending.set()
        return (look or running(APPLICATION)).status()

    monkeypatch.setattr(job, "_CHECK_SECONDS", 0.01)
    assert job.wait(SimpleNamespace(status=status), ending) == 0


def test_the_first_signal_ends_in_peace_and_the_second_at_once(
    capfd: pytest.CaptureFixture[str],
) -> None:
    ending = threading.Event()
    job.on_signal(ending, 30.0)
    assert ending.is_set()
    told = capfd.readouterr().err
    assert told == "ending: running requests have 30 s; Ctrl-C again ends at once\n"
    with pytest.raises(KeyboardInterrupt):
        job.on_signal(ending, 30.0)
    assert capfd.readouterr().err == ""


def test_an_unknown_decoder_ends_the_job_before_ray_starts(
    make_dataset: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", samples(1)))])
    monkeypatch.setattr(job.cluster, "connect", lambda *_: pytest.fail("Ray is started"))
    with pytest.raises(OptionError, match=r"--decoder.*no option decoder"):
        job._serve(ServeOptions(dataset=dataset.url, port=0, decoder="nonsense"), threading.Event())
