"""evaluate.py's command line: which options it accepts together, and which it refuses."""

import pytest

from tests.jobs.scripts import load_job

DATA = ["--data", "a.tar", "--output", "out"]


def test_what_was_given_is_what_is_done() -> None:
    parse = load_job("evaluate").parse
    plain = parse(DATA)
    assert (plain.data, plain.models, plain.peers, plain.first) == (("a.tar",), (), None, None)
    assert (plain.layers, plain.show, plain.show_bpp) == (None, 2, (0.1, 0.3, 1.0))
    more = parse([*DATA, "--model", "a", "b,quality=0", "--model", "c", "--peers", "none"])
    assert (more.models, more.peers) == (("a", "b,quality=0", "c"), ())
    part = parse([*DATA, "--first", "6", "--layers", "2", "--peers", "webp"])
    assert (part.first, part.layers, part.peers) == (6, 2, ("webp",))
    shown = parse([*DATA, "--show", "0", "--show-bpp", "0.5"])
    assert (shown.show, shown.show_bpp) == (0, (0.5,))


def test_the_report_says_the_command_without_secrets() -> None:
    parse = load_job("evaluate").parse
    for secret in (["--input-options", '{"key": "s"}'], ['--output-options={"key": "s"}']):
        command = parse([*DATA, *secret]).command
        assert command.startswith("strata evaluate --data a.tar --output out --")
        assert "key" not in command


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--peers", "none"], "nothing to measure"),
        (["--peers", "none", "jpeg"], "none must be the only name"),
        (["--first", "0"], "--first"),
        (["--show", "-1"], "--show: must be at least 0"),
        (["--show-bpp", "0"], "--show-bpp: must be above 0"),
        (["--input-opt", "{}"], "no option --input-opt: did you mean --input-options?"),
    ],
)
def test_what_cannot_be(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_job("evaluate").parse([*DATA, *flags])
    assert words in capsys.readouterr().err
