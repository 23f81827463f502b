"""What all tests share: a quiet, private environment, and the pictures to work on."""

import os
import shutil
import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent

# Before any test imports Ray or torch, and inherited by the processes they start.
os.environ.update(
    AWS_ACCESS_KEY_ID="test",
    AWS_SECRET_ACCESS_KEY="test",
    AWS_DEFAULT_REGION="us-east-1",
    RAY_AUTH_MODE="disabled",  # otherwise ray.init() leaves a token in the home directory
    RAY_USAGE_STATS_ENABLED="0",
    # By itself Ray lets its workers go last, behind whatever else a machine does: for minutes.
    RAY_worker_niceness="0",
    OMP_WAIT_POLICY="PASSIVE",  # as codec sets these, in case a test imports torch first
    GOMP_SPINCOUNT="1000",
)
# The same examples in every run: a suite that fails now and then teaches nobody anything.
hypothesis.settings.register_profile("default", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("default")

# Real browsers and real clusters: one hiccup of a slow machine must not stop everything. What was
# run once more is told at the end, as RERUN. Nothing else ever is.
RUN_ONCE_MORE = ("browser", "integration")


def pytest_configure(config: pytest.Config) -> None:
    """A folder for temporary files that no other process has, which may test at the same time.

    A job that ends waits up to two seconds for the scratch folders of others on its machine.
    """
    common = os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # pytest's own
    private = tempfile.mkdtemp(prefix="st-", dir=common)  # short, because Ray has sockets there
    os.environ["TMPDIR"] = tempfile.tempdir = private
    config.add_cleanup(lambda: shutil.rmtree(private, ignore_errors=True))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    folders = [item.path.relative_to(TESTS).parts[0] for item in items]
    for item, folder in zip(items, folders, strict=True):
        if folder in RUN_ONCE_MORE:
            item.add_marker(pytest.mark.flaky(reruns=1))
    if hasattr(config, "workerinput"):
        # One of several processes (infra/test.sh), which get a file at a time: those that take
        # minutes, mostly waiting, come first, and many short ones fill up the end.
        long = (*RUN_ONCE_MORE, "recipes")
        order = sorted(range(len(items)), key=lambda number: folders[number] not in long)
        items[:] = [items[number] for number in order]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data and reference models beside the checkout; tests skip without it."""
    folder = Path(os.environ.get("STRATA_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip("no folder of shared data beside the checkout (or in STRATA_SHARED)")
    return folder


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """A photograph that scikit-image bundles: Eileen Collins, NASA, public domain, 512x512."""
    from skimage import data

    return data.astronaut()
