"""What people are told when workers are lost. Ray Train calls it where its controller runs."""

from typing import Any

from ray.train import UserCallback


class Losses(UserCallback):
    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for rank, error in sorted(worker_exceptions.items()):
            first = (str(error).strip().splitlines() or [""])[0]
            print(f"worker {rank} ended: {type(error).__name__}: {first}", flush=True)
        print("going on from the last checkpoint", flush=True)
