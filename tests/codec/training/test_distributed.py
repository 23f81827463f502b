"""Several processes train one model like one process that has all their pictures."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from codec.errors import StrataError
from codec.training.data import Pictures
from codec.training.distributed import ALONE, Team, TorchTeam
from codec.training.loop import TrainingConfig, train
from codec.training.run_folder import RunFolder

CONFIG = TrainingConfig(
    steps=4, learning_rate=0.05, warmup=1, final_rate=1.0, batch=1, crop=16, gradient_clip=0.05
)


class Model(nn.Module):
    """A network for bright pictures, one for dark ones, and one for none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(dist.get_rank() if dist.is_initialized() else 0)
        self.bright, self.dark, self.idle = (nn.Linear(3, 4) for _ in range(3))
        self.fixed = nn.Parameter(torch.ones(3), requires_grad=False)


class Objective(nn.Module):
    """A mean over pictures, with a memory."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(
        self, model: nn.Module, images: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        assert isinstance(model, Model)
        colour = images.float().mean((2, 3)) / 255 * model.fixed
        is_bright = colour.mean(1) > 0.5
        loss = torch.zeros(())
        for network, chosen in ((model.bright, is_bright), (model.dark, ~is_bright)):
            if chosen.any():
                loss = loss + network(colour[chosen]).square().sum() / len(images)
        self.seen += images.float().mean()
        return loss, {"loss": float(loss.detach())}


def some_pictures() -> Pictures:
    pictures = Pictures(CONFIG.crop)
    for i in range(8):
        level = np.array([30 * i, 31 * i, 35 * i], np.uint8)
        pictures.add(np.broadcast_to(level, (16, 16, 3)).copy())
    pictures.sources = Counter(made=8)
    return pictures


class Together(Pictures):
    """In one batch what several parts of a step draw."""

    def __init__(self, parts: Sequence[int]) -> None:
        super().__init__(CONFIG.crop)
        self.large, self.parts, self.step = some_pictures().large, parts, 0

    def batch(self, count: int, small_share: float, rng: np.random.Generator) -> Tensor:
        drawn = [
            super(Together, self).batch(
                count, small_share, np.random.default_rng([CONFIG.seed, self.step, part])
            )
            for part in range(self.parts[self.step])
        ]
        self.step += 1
        return torch.cat(drawn)


def run(
    out: Path, pictures: Pictures, team: Team = ALONE, **changes: Any
) -> tuple[dict[str, Tensor], Tensor, list[str]]:
    """The averaged weights, the objective's memory, and what was logged."""
    saved: dict[str, Tensor] = {}
    lines: list[str] = []

    def save(weights: dict[str, Tensor], card: dict[str, Any]) -> dict[str, Any]:
        saved.update({n: v.clone() for n, v in weights.items()})
        return {"workers": card["workers"], "pictures": card["pictures"]}

    objective = Objective()
    train(
        Model(),
        objective,
        pictures,
        replace(CONFIG, **changes),
        RunFolder(out),
        save,
        log=lines.append,
        team=team,
    )
    return saved, objective.seen, lines


def in_a_team(rank: int, folder: Path) -> None:
    """What each of two processes does; the tests look at what the first one leaves behind."""
    torch.set_num_threads(1)
    group = f"file://{folder}/group"
    dist.init_process_group("gloo", init_method=group, rank=rank, world_size=2)
    team = TorchTeam()
    runs = {}
    for name, changes in (
        ("plain", {}),
        ("accumulated", {"accumulate": 2}),
        ("resumed", {}),
        ("halves", {"steps": 2}),
        ("halves", {}),
    ):
        # The other process's folder is empty, and nothing of it may count.
        out = folder / (name if rank == 0 else f"{name}-other")
        saved, memory, lines = run(out, some_pictures(), team, **changes)
        runs[name] = {"weights": saved, "memory": memory, "lines": lines}
    problems = []

    def fail() -> None:
        raise StrataError(f"no good in {rank}")

    attempts = (lambda: team.lead(fail), lambda: team.everywhere(fail if rank else int))
    for attempt in attempts:
        try:
            attempt()
        except StrataError as error:
            problems.append(str(error))
    torch.save({"runs": runs, "problems": problems}, folder / f"done-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have trained three times, once going on from what one had begun."""
    folder = tmp_path_factory.mktemp("team")
    run(folder / "resumed", some_pictures(), steps=2)
    mp.spawn(in_a_team, (folder,), nprocs=2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parts"),
    [("plain", [2] * 4), ("accumulated", [4] * 4), ("resumed", [1, 1, 2, 2])],
)
def test_a_team_steps_as_one_process_with_all_pictures(
    name: str, parts: list[int], folder: Path, tmp_path: Path
) -> None:
    whole, _, _ = run(tmp_path, Together(parts))
    done = [torch.load(folder / f"done-{rank}.pt")["runs"][name] for rank in (0, 1)]
    for weight, value in whole.items():
        torch.testing.assert_close(done[0]["weights"][weight], value, msg=weight)
    assert torch.equal(whole["idle.weight"], Model().idle.weight)  # nobody had a gradient for it
    assert torch.equal(done[0]["memory"], done[1]["memory"])
    assert not done[1]["weights"]  # only the first one saves
    line = json.loads((folder / name / "log.jsonl").read_text().splitlines()[-1])
    assert (line["workers"], line["pictures"]) == (2, {"made": 16})
    assert any("resumed" in text for text in done[1]["lines"]) == (name == "resumed")


@pytest.mark.slow
def test_a_team_that_goes_on_ends_where_it_would_have(folder: Path) -> None:
    runs = torch.load(folder / "done-0.pt")["runs"]
    assert any("at step 2" in line for line in runs["halves"]["lines"])
    for name, value in runs["plain"]["weights"].items():
        assert torch.equal(runs["halves"]["weights"][name], value)


@pytest.mark.slow
def test_an_error_in_one_process_is_everybodys(folder: Path) -> None:
    for rank in (0, 1):
        done = torch.load(folder / f"done-{rank}.pt")
        assert done["problems"] == ["no good in 0", "no good in 1"]


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    parts, _, _ = run(tmp_path / "parts", some_pictures(), accumulate=3)
    whole, _, _ = run(tmp_path / "whole", Together([3] * 4))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, msg=name)


def test_what_an_objective_remembers_is_kept(tmp_path: Path) -> None:
    _, at_once, _ = run(tmp_path / "whole", some_pictures())
    run(tmp_path / "parts", some_pictures(), steps=2)
    _, in_parts, _ = run(tmp_path / "parts", some_pictures())
    torch.testing.assert_close(in_parts, at_once)
