"""Ray Train's trainer without a process that it does not need, and messages about lost workers."""

from typing import Any

from ray.train import UserCallback
from ray.train.torch import TorchTrainer


class Trainer(TorchTrainer):
    """Without the process that frees the machines of a controller that died.

    The driver's end frees them, too; and that process asks Ray's dashboard, which a private cluster
    does not have, and prints a stack because of it.
    """

    def _create_default_callbacks(self) -> list[Any]:
        kinds = super()._create_default_callbacks()  # type: ignore[misc]
        return [one for one in kinds if type(one).__name__ != "PlacementGroupCleanerCallback"]


class Losses(UserCallback):
    """Runs where Ray Train's controller runs; what it prints arrives at the driver."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for rank, error in sorted(worker_exceptions.items()):
            first = (str(error).strip().splitlines() or [""])[0]
            print(f"worker {rank} ended: {type(error).__name__}: {first}", flush=True)
        print("starting again from the last checkpoint, if --restarts allows it", flush=True)
