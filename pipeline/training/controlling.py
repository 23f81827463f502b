"""Ray Train's trainer without a needless process, and messages about lost workers."""

from typing import Any

from ray.train import UserCallback
from ray.train.torch import TorchTrainer


class Trainer(TorchTrainer):
    """Ray's trainer without the process that frees the machines of a controller that died.

    The end of the driver frees them as well. That process needs Ray's dashboard, which a private
    cluster does not have, and prints a traceback without it.
    """

    def _create_default_callbacks(self) -> list[Any]:
        kinds = super()._create_default_callbacks()  # type: ignore[misc]
        return [one for one in kinds if type(one).__name__ != "PlacementGroupCleanerCallback"]


class Losses(UserCallback):
    """Prints errors of workers, in Ray Train's controller, whose output the driver shows."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for rank, error in sorted(worker_exceptions.items()):
            first = (str(error).strip().splitlines() or [""])[0]
            print(f"worker {rank} ended: {type(error).__name__}: {first}", flush=True)
        print("starting again from the last checkpoint, if --restarts allows it", flush=True)
