"""The one command: it hands everything to the jobs, under its own name."""

import importlib
import inspect
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from jobs import strata

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_lists_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert strata.main(arguments) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in strata.COMMANDS)


def test_every_script_is_a_command() -> None:
    scripts = {f"jobs.{path.stem}" for path in (ROOT / "jobs").glob("[a-z]*.py")} - {"jobs.strata"}
    modules = {module for module, _ in strata.COMMANDS.values()}
    assert scripts == modules - {"codec.__main__"}
    for module in modules:
        assert list(inspect.signature(importlib.import_module(module).main).parameters)


def test_commands_speak_under_their_own_name(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.argv[0]
    try:
        with pytest.raises(SystemExit) as ended:
            strata.main(["verify", "--inputt", "x"])
    finally:
        sys.argv[0] = before
    assert ended.value.code == 2
    assert "usage: strata verify" in capsys.readouterr().err


def test_what_is_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert strata.main(["compres"]) == 2
    assert "no command compres; did you mean compress?" in capsys.readouterr().err


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert strata.main(["--version"]) == 0
    assert capsys.readouterr().out == f"strata {version('strata-images')}\n"
