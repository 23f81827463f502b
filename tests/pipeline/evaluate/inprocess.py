"""The evaluating job without Ray: its tasks one after the other, in this process."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codec.images.files import write_image
from pipeline.evaluate import EvaluateOptions, EvaluationSummary, evaluate, job
from pipeline.evaluate.figures import Evaluation
from pipeline.evaluate.measuring import METRICS
from pipeline.evaluate.worker import EvaluateSettings, Evaluator
from pipeline.running.tasks import Outcome, Task
from tests.pipeline.makers import write_tar


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Edges, ramps and a little noise, ``(height, width, 3) uint8``."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = np.sin(x / (5 + seed)) + np.cos((x + 2 * y) / 9) + ((x // 12 + y // 9) % 2)
    colours = waves[..., None] * np.array([40, 55, 35]) + random.normal(110, 6, (height, width, 3))
    return colours.clip(0, 255).astype(np.uint8)


def png_samples(*sizes: tuple[int, int]) -> list[tuple[str, bytes]]:
    """One PNG sample for each (height, width)."""
    return [
        (f"p{number:03d}.png", write_image(photograph(*size, seed=number)))
        for number, size in enumerate(sizes)
    ]


class Runner:
    """Runs the job. ``stop_after`` tasks nothing more is done, as if the job had been killed.

    ``found`` is what the last report was made of.
    """

    found: Evaluation

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.folder = folder
        self.done: list[str] = []
        self.stop_after = 10**9
        self.error: Callable[[str], str] = lambda name: ""
        monkeypatch.setattr(job, "run_job_tasks", self._run)
        # Butteraugli is a program to start for each file: a test of its own looks at that
        metrics = tuple(name for name in METRICS if name != "butteraugli")
        monkeypatch.setattr(job, "installed", lambda: metrics)
        collect = job.collect

        def keep(*arguments: Any) -> Evaluation:
            self.found = collect(*arguments)
            return self.found

        monkeypatch.setattr(job, "collect", keep)

    def tar(self, name: str, files: Sequence[tuple[str, bytes]]) -> str:
        return str(write_tar(self.folder / name, files))

    def __call__(self, data: str, **options: Any) -> EvaluationSummary:
        options = {"output": str(self.folder / "report"), "show": 0} | options
        return evaluate(EvaluateOptions(data=(data,), **options))

    def _run(
        self,
        verb: str,
        worker: type[Evaluator],
        settings: EvaluateSettings,
        tasks: Mapping[Task, int],
        *rest: Any,
        **more: Any,
    ) -> list[Outcome]:
        self.done = []
        evaluator = worker(settings)
        evaluator.ready()
        outcomes = []
        for task in tasks:
            if len(self.done) == self.stop_after:
                raise KeyboardInterrupt
            self.done.append(task.name)
            try:
                if error := self.error(task.name):
                    raise RuntimeError(error)
                outcomes.append(Outcome(task, evaluator.run(*task.arguments), attempts=1))
            except RuntimeError as error:
                outcomes.append(Outcome(task, None, str(error), 3))
        return outcomes
