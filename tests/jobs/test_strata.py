"""The command ``strata``: it passes everything to the jobs, under its own name."""

import importlib
import inspect
import re
import shlex
import sys
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

import pytest

from codec.errors import StrataError
from jobs import strata

ROOT = Path(__file__).resolve().parents[2]


def documented() -> list[str]:
    """The commands in blocks of the documents, and those of README's table."""
    found = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        if path.name == "experiments.md":  # what was run then
            continue
        text = re.sub(r"\\\n\s*", " ", path.read_text())
        found += re.findall(r"(?m)^ *(?:\$ |[^`\n]*\| )?(strata [a-z]+ [^`\n|]*)$", text)
        if path.name == "README.md":
            found += re.findall(r"`(strata [a-z]+ [^`\n]+)`", text)
    return [one for one in dict.fromkeys(found) if "--help" not in one]


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


def test_the_models_speak_so_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["strata"])
    with pytest.raises(SystemExit):
        strata.main(["models", "shwo"])
    assert "usage: strata models" in capsys.readouterr().err


def test_options_that_do_not_exist_are_named_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["strata"])
    for words in (["--outpt", "y"], ["--outpt=y"], ["--output", "y", "--outpt", "z"]):
        with pytest.raises(SystemExit):
            strata.main(["compress", "--input", "x", "--dry", *words])
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.endswith("error: there is no option --outpt: did you mean --output?")
    with pytest.raises(SystemExit):
        strata.main(["compress", "--input", "x"])
    assert "the following arguments are required: --output" in capsys.readouterr().err


def test_what_is_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert strata.main(["compres"]) == 2
    assert "no command compres; did you mean compress?" in capsys.readouterr().err


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert strata.main(["--version"]) == 0
    assert capsys.readouterr().out == f"strata {version('strata-images')}\n"


@pytest.mark.parametrize("command", documented())
def test_commands_of_documents_are_understood(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone.txt").write_text("a-key")
    _, name, *words = shlex.split(command, comments=True)
    module = importlib.import_module(strata.COMMANDS[name][0])
    if not hasattr(module, "parse"):
        pytest.skip("parses and acts in one")
    # --init of a run that is not there is the only thing that may be wrong.
    with pytest.raises(StrataError) if "runs/a --stage" in command else nullcontext():
        assert module.parse(words)


def test_there_are_commands_in_documents() -> None:
    names = {command.split()[1] for command in documented()}
    assert names >= {
        "compress",
        "decode",
        "verify",
        "merge",
        "delete",
        "train",
        "evaluate",
        "serve",
    }
    assert len(documented()) > 50
