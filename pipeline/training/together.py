"""Trains on the workers of a Ray cluster. Ray Train restarts them when one is lost.

Checkpoints do not go through Ray: they are in the run's own folder. So a later start finds them,
with any number of workers, with Ray or without.
"""

import contextlib
import importlib.util
import os
import tempfile
import uuid
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from codec.errors import StrataError
from codec.models.zoo import MODEL_FILE
from codec.training.distributed import TorchTeam
from codec.training.recipe import TRAINING_FILE, TrainingFile
from codec.training.run import run
from codec.training.run_folder import RunFolder

from ..running import cluster
from ..running.cluster import WorkerShape
from ..sources.base import Shard
from ..stores.filesystems import StorageError
from .data import Opener
from .folders import is_remote, local_path, open_folder
from .options import TrainOptions

# The other workers wait so long while the first one validates or counts tables. Ray notices a lost
# worker without this.
COLLECTIVE_SECONDS = 4 * 3600
_NEEDED = ("pandas", "pydantic", "requests")  # by Ray Train
_MARK = ".begun-by"
# Hides torch's warning that every parameter had a gradient in the first batch, which is chance.
_WORKER_ENVIRONMENT = {"TORCH_CPP_LOG_LEVEL": "ERROR"}


class LostWorkersError(StrataError):
    """Workers were lost, or failed, more often than was allowed."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What all workers need to know.

    Attributes:
        options: with URLs of single shards.
        others: the shards that are no tars.
        init: name and content of the file of weights to start from.
        mark: what the driver wrote into the run's folder, if that is a path.
        threads: of each worker.
    """

    options: TrainOptions
    others: Mapping[str, Shard]
    init: tuple[str, bytes] | None = field(default=None, repr=False)
    mark: str
    threads: int
    cuda: bool


def train_together(
    options: TrainOptions,
    others: Mapping[str, Shard],
    init: Path | None,
    log: Callable[[str], None],
) -> None:
    """Train on ``options.workers`` workers as long as the options say.

    ``data`` and ``validation`` are URLs of single shards, of which ``others`` are no tars. ``init``
    is the local path of the model ``options.init``. Raises ClusterError, LostWorkersError, and what
    ``codec.training.run.run`` raises.
    """
    assert options.workers is not None
    workers = options.workers
    # Workers stay in the driver's folder, so that relative paths are the same as in other jobs.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # it would print everything twice
    os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise cluster.ClusterError(
            f"--workers needs Ray Train, and {', '.join(missing)} is not installed: "
            "pip install -e '.[train]' -c infra/constraints.txt"
        )
    cluster.connect(options.address)
    import ray  # only after connecting

    shape = cluster.share(workers, options.device or "auto", workers, options.threads)
    if len(ray.nodes()) == 1:  # no machine can be preempted without the driver's
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    if shape.workers < workers:
        log(f"the cluster has room for {shape.workers} of {workers} workers")
    mark = uuid.uuid4().hex
    order = Order(
        options=options,
        others=others,
        init=_packed(init) if init else None,
        mark=mark,
        threads=shape.threads,
        cuda=shape.device == "cuda",
    )
    with _marked(options.out, mark):
        refusal = _fit(order, shape, options.restarts)
    if refusal:
        raise StrataError(refusal)


@contextlib.contextmanager
def _marked(out: str, mark: str) -> Any:
    """Put a mark into the run's folder. On another machine the same path may be another folder."""
    if is_remote(out):
        yield
        return
    file = local_path(out) / _MARK
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(mark)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def _fit(order: Order, shape: WorkerShape, restarts: int) -> str:
    """Train; returns why it could not, or ''."""
    from ray import train
    from ray.train.torch import TorchConfig

    from .controlling import Losses, Trainer

    ray_train: Any = train  # whose types are those of its older version
    start: Any = Trainer
    resources = {"CPU": shape.cpus}
    if shape.gpus:
        resources["GPU"] = shape.gpus
    with tempfile.TemporaryDirectory(prefix="strata-ray-train-") as folder:
        trainer = start(
            partial(work, order),
            torch_config=TorchConfig(timeout_s=COLLECTIVE_SECONDS),
            scaling_config=ray_train.ScalingConfig(
                num_workers=shape.workers,
                use_gpu=shape.gpus > 0,
                resources_per_worker=resources,
            ),
            run_config=ray_train.RunConfig(
                name="run",
                storage_path=folder,
                failure_config=ray_train.FailureConfig(max_failures=restarts),
                callbacks=[Losses()],
                worker_runtime_env={"env_vars": _WORKER_ENVIRONMENT},
                logging_config=ray_train.LoggingConfig(log_level="WARNING"),
            ),
        )
        try:
            result = trainer.fit()
        except SystemExit:  # Ray Train raises it after Ctrl-C
            raise KeyboardInterrupt from None
        except ray_train.TrainingFailedError as error:
            raise LostWorkersError(
                f"training ended after {restarts} restarts (--restarts): {error}; the same command "
                "goes on from the last checkpoint"
            ) from error
    return str(result.return_value or "")


def work(order: Order) -> str:
    """Train as one of the workers; returns why training cannot go on, or ''.

    Errors that cannot pass are returned, because Ray tries again after an exception.
    """
    import torch
    from ray.train.torch import get_device

    torch.set_num_threads(order.threads)
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
    device = str(get_device()) if order.cuda else "cpu"
    team = TorchTeam(device)

    def log(line: str) -> None:
        print(line if team.rank == 0 else f"worker {team.rank}: {line}", flush=True)

    try:
        with contextlib.ExitStack() as stack:
            run(
                order.options,
                Opener(order.options.input_options, order.others),
                team.everywhere(partial(_enter, order, stack, team.rank)),
                device=device,
                log=log,
                team=team,
                init=_unpacked(order, stack),
            )
    except StrataError as error:
        if error.passing or error is not team.refusal:  # others may still be waiting for this one
            raise
        return str(error)
    return ""


def _enter(order: Order, stack: contextlib.ExitStack, rank: int) -> RunFolder:
    """The run's folder in the first worker; the others' stay empty."""
    if rank > 0:
        return RunFolder(Path(stack.enter_context(tempfile.TemporaryDirectory())))
    options = order.options
    if not is_remote(options.out):
        mark = local_path(options.out) / _MARK
        if not mark.is_file() or mark.read_text() != order.mark:
            raise StorageError(
                f"{options.out}: is another folder on this worker's machine than on the driver's: "
                "give a URL, or a path that all machines share"
            )
    return stack.enter_context(open_folder(options.out, options.output_options, options.scratch))


def _packed(model: Path) -> tuple[str, bytes]:
    """The file of weights, under the name that it has in a run's folder."""
    file = TrainingFile.find(model).path
    is_training = file.name.endswith(TRAINING_FILE)
    return (TRAINING_FILE if is_training else MODEL_FILE), file.read_bytes()


def _unpacked(order: Order, stack: contextlib.ExitStack) -> Path | None:
    if order.init is None:
        return None
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="strata-model-")))
    name, content = order.init
    (folder / name).write_bytes(content)
    return folder
