"""Workers that misbehave on demand; in a module of their own, so that Ray's processes find them."""

import os
import time
from pathlib import Path
from typing import Any

from codec.errors import StrataError


class FakeWorker:
    """Does what its argument says. ``settings`` is a folder in which it counts its calls."""

    def __init__(self, settings: str) -> None:
        self.folder = Path(settings)

    def ready(self) -> str:
        if (self.folder / "cannot-start").exists():
            raise StrataError("the model is gone")
        return "ready"

    def progress(self) -> dict[str, Any]:
        return {"samples": 1, "of": 2, "key": "the-last-key"}

    def run(self, name: str, behaviour: str) -> dict[str, Any]:
        calls = self.folder / name
        with calls.open("a") as out:
            out.write("x")
        count = calls.stat().st_size
        match behaviour:
            case "permanent":
                raise StrataError(f"{name} is damaged")
            case "always":
                raise ValueError("again and again")
            case "once" if count == 1:
                raise OSError("a passing fault")
            case "die":
                time.sleep(1.5)  # long enough to be asked for its progress
                os._exit(1)
            case "die once" if count == 1:
                os._exit(1)
            case "hang once" if count == 1:
                time.sleep(600)
            case "hang":
                time.sleep(600)
        return {"name": name, "omp": os.environ.get("OMP_NUM_THREADS")}
