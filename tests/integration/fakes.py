"""Workers that fail on demand; in a module, so that Ray's processes can import them."""

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codec.errors import StrataError
from pipeline.running.activity import Activity
from pipeline.running.stages import Turn
from pipeline.running.tasks import PausedError

SAMPLES = 13


class OddError(Exception):
    """As some libraries write them: it can be pickled, and not read again."""

    def __init__(self, *, reason: str, code: int) -> None:
        super().__init__(f"{reason} {code}")


class PassingError(StrataError):
    """What a store that is away for a while would raise."""

    passing = True


class FakeWorker:
    """Does what its argument says. ``settings`` is a folder in which it counts its calls.

    A behaviour like ``poison 4 7`` is a shard of 13 samples of which these kill their worker.
    """

    def __init__(self, settings: str) -> None:
        self.folder = Path(settings)
        self.computing = Turn()
        self.starved = False

    def ready(self) -> str:
        if (self.folder / "cannot-start").exists():
            raise StrataError("the model is gone")
        if (self.folder / "store-is-away").exists():
            (self.folder / "store-is-away").unlink()
            raise PassingError("try later")
        return "ready"

    def status(self) -> dict[str, Any]:
        memory = {"rss": 5 << 30, "free": 1 << 20} if self.starved else {}
        return {"pid": os.getpid(), "shards": {"x": {"key": "the-last-key"}}, **memory}

    def run(
        self, name: str, behaviour: str, skip: Mapping[int, str] | None = None
    ) -> dict[str, Any]:
        calls = self.folder / name
        with calls.open("a") as out:
            out.write("x")
        count = calls.stat().st_size
        if behaviour == "hang aside":
            time.sleep(600)
        if behaviour == "hang later":
            time.sleep(1)  # tasks that come at the same moment take their turns in any order
        with self.computing:
            match behaviour:
                case "permanent":
                    raise StrataError(f"{name} is damaged")
                case "always":
                    raise ValueError("again and again")
                case "once" if count == 1:
                    raise OSError("a passing fault")
                case "store once" if count == 1:
                    raise PassingError("the store is away")
                case "short":
                    time.sleep(0.1)
                case "die":
                    time.sleep(1.5)  # long enough to be asked for its progress
                    os._exit(1)
                case "starve":
                    self.starved = True
                    time.sleep(5)  # long enough to be asked for its progress
                    os._exit(1)
                case "die once" if count == 1:
                    os._exit(1)
                case "hang once" if count == 1:
                    time.sleep(600)
                case "hang" | "hang later":
                    time.sleep(600)
                case "not here" if self._is_first():
                    raise RuntimeError("this worker is broken")
                case "exit once" if count == 1:
                    raise SystemExit(0)
                case "odd":
                    raise OddError(reason="odd", code=7)
                case "slow":
                    time.sleep(2)
                case str() if behaviour.startswith("poison"):
                    self._touch(behaviour, range(SAMPLES), skip or {})
        return {"name": name, "omp": os.environ.get("OMP_NUM_THREADS"), "skip": dict(skip or {})}

    def _is_first(self) -> bool:
        """Whether this is the process that came here first: the broken one."""
        try:
            (self.folder / "first").open("x").write(str(os.getpid()))
        except FileExistsError:
            time.sleep(0.2)  # the others are slower than the one that only fails
        return (self.folder / "first").read_text() == str(os.getpid())

    def _touch(self, behaviour: str, samples: range, skip: Mapping[int, str]) -> None:
        kind, *numbers = behaviour.split()
        for number in map(int, numbers):
            if number in samples and number not in skip:
                if kind == "poison-hang":
                    time.sleep(600)
                os._exit(1)


class SearchableWorker(FakeWorker):
    """One whose tasks can be searched for the sample that kills."""

    def probe(
        self, name: str, behaviour: str, start: int, stop: int, skip: Mapping[int, str]
    ) -> int:
        with (self.folder / f"{name}.probes").open("a") as out:
            out.write("x")
        if behaviour == "die":
            os._exit(1)
        self._touch(behaviour, range(start, stop), skip)
        return SAMPLES


class LateWorker(FakeWorker):
    """All but the first to start take their time, and no task ends before the second is there.

    Each answers with its process.
    """

    def ready(self) -> str:
        if not self._is_first():
            time.sleep(1)
            (self.folder / "second-is-there").touch()
        return "ready"

    def run(
        self, name: str, behaviour: str, skip: Mapping[int, str] | None = None
    ) -> dict[str, Any]:
        result = super().run(name, behaviour, skip)
        for _ in range(600):  # more than it takes to start a worker
            if (self.folder / "second-is-there").exists():
                break
            time.sleep(0.1)
        return {**result, "pid": os.getpid()}


class SteadyWorker(FakeWorker):
    """One that shows how it gets on, and puts its task aside when it is asked to."""

    def __init__(self, settings: str) -> None:
        super().__init__(settings)
        self.activity = Activity()
        self.pausing = threading.Event()

    def status(self) -> dict[str, Any]:
        return self.activity.status()

    def pause(self) -> None:
        self.pausing.set()

    def run(
        self, name: str, behaviour: str, skip: Mapping[int, str] | None = None
    ) -> dict[str, Any]:
        samples = {"steady": 16, "for ever": 1200}.get(behaviour, 0)
        if behaviour == "for ever":
            time.sleep(1)  # tasks that come at the same moment take their turns in any order
        with self.activity.shard(name, stage="wait"), self.computing:
            for _ in range(samples):
                if self.pausing.wait(0.5):
                    (self.folder / "saved").write_text(name)
                    raise PausedError(name)
                self.activity.show(name, stage="encode")
                self.activity.add(name, samples=1)
        return {"name": name}


class SlowOpeningWorker(SearchableWorker):
    """One that must fetch its shard first, which takes a while."""

    def probe(
        self, name: str, behaviour: str, start: int, stop: int, skip: Mapping[int, str]
    ) -> int:
        time.sleep(2)
        return super().probe(name, behaviour, start, stop, skip)
