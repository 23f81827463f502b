"""``import pipeline``: its public names, and that it does not import torch."""

import subprocess
import sys

import pytest

import pipeline
from tests.conftest import ROOT


def test_every_name_is_there() -> None:
    for name in pipeline.__all__:
        assert getattr(pipeline, name).__module__.startswith("pipeline.")
    assert set(pipeline.__all__) <= {*dir(pipeline)}
    with pytest.raises(AttributeError, match="no attribute 'decompress'"):
        _ = pipeline.decompress


def test_importing_it_imports_nothing_else() -> None:
    script = (
        "import sys; import pipeline; "
        "print(sorted({'torch', 'ray', 'pyarrow', 'fsspec', 'rich'} & {*sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", ["codec", "pipeline"])
def test_type_checkers_may_read_the_hints(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()
