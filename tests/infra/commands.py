"""The command lines in infra/ and docs/, parsed by the programs that they call."""

import re
import shlex
from pathlib import Path
from typing import Any

import click
from ray.scripts.scripts import start

from tests.jobs.scripts import JOBS, load_job

ROOT = Path(__file__).parents[2]


def job_commands(text: str) -> list[list[str]]:
    """The words of every call of a script in jobs/ in a shell text."""
    joined = re.sub(r"\\\n\s*#?\s*", " ", text)
    pattern = r"python3? \S*jobs/\w+\.py[^\n;&|#)`]*"
    return [shlex.split(found) for found in re.findall(pattern, joined)]


def parse_job(words: list[str]) -> Any:
    """What the job makes of its command line. Raises SystemExit where it refuses it."""
    script = JOBS / Path(words[1]).name
    assert script.is_file(), f"there is no {script}"
    return load_job(script.stem).parse(words[2:])


def parse_ray_start(words: list[str]) -> dict[str, Any]:
    """What `ray start` makes of its options. Raises click.UsageError where it refuses them."""
    context: click.Context = start.make_context("ray start", list(words))
    return dict(context.params)
