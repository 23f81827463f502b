"""The training job, in this process or on the workers of a Ray cluster.

In this process, with local files, it needs only torch, numpy, Pillow and safetensors: a machine for
training may lack the packages for object stores.
"""

import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codec.errors import StrataError
from codec.images.files import EXTENSIONS
from codec.training.data import Open
from codec.training.recipe import TRAINING_FILE
from codec.training.run import run
from codec.training.run_folder import RunFolder

from .options import TrainOptions

if TYPE_CHECKING:
    from ..sources.kinds import InputFormat

Log = Callable[[str], None]
Others = Mapping[str, Any]  # shards (sources.base) by their URLs
_fetched: list[tempfile.TemporaryDirectory[str]] = []  # fetched models, until this process ends


def _print(line: str) -> None:
    print(line, flush=True)


def train_model(options: TrainOptions, log: Log = _print) -> None:
    """Train as long as the options say, from the last checkpoint in ``options.out`` on.

    Raises StrataError for what the user must correct, KeyboardInterrupt after Ctrl-C.
    """
    if options.workers:
        _train_together(options, log)
    else:
        _train_here(options, log)


def _train_here(options: TrainOptions, log: Log) -> None:
    import torch  # after codec, which sets how its threads wait

    if options.threads:
        torch.set_num_threads(options.threads)
    device = options.device or "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise StrataError("--device cuda: torch finds no GPU here")
    options, others = _with_single_shards(options)
    open_shard = opener((*options.data, *options.validation), options.input_options, others)
    with _folder(options) as folder:
        run(options, open_shard, folder, device=device, log=log, init=_init_path(options))


def _train_together(options: TrainOptions, log: Log) -> None:
    from ..running import cluster
    from .together import train_together

    if cluster.would_be_lost(options.out):
        raise StrataError(f"--out {options.out}: {cluster.LOST}")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM ends it like Ctrl-C
    try:
        train_together(*_with_single_shards(options), _init_path(options), log)
    finally:
        cluster.disconnect()


def _with_single_shards(options: TrainOptions) -> tuple[TrainOptions, Others]:
    data, others = shards_of(options.data, options.input_options, options.input_format)
    validation, more = shards_of(options.validation, options.input_options)
    return replace(options, data=data, validation=validation), {**others, **more}


def shards_of(
    urls: Sequence[str], options: Mapping[str, Any], wanted: "InputFormat | None" = None
) -> tuple[tuple[str, ...], Others]:
    """The URLs of single shards, and the shards that are no tars. Local tars need no packages."""
    if all(map(_is_local_tar, urls)):
        return tuple(urls), {}
    from .data import list_shards

    return list_shards(urls, options, wanted)


def _is_local_tar(url: str) -> bool:
    extension = Path(url).suffix.lower().lstrip(".")
    return Path(url).is_file() and extension not in {"parquet", "pq", *EXTENSIONS}


def opener(shards: Sequence[str], options: Mapping[str, Any], others: Others) -> Open:
    """A function that opens these shards, of which ``others`` are no tars."""
    if not others and all(Path(shard).is_file() for shard in shards):
        return lambda path: open(path, "rb")
    from .data import Opener

    return Opener(options, others)


@contextmanager
def _folder(options: TrainOptions) -> Iterator[RunFolder]:
    if "://" not in options.out:
        yield RunFolder(Path(options.out))
        return
    from .folders import open_folder

    with open_folder(options.out, options.output_options) as folder:
        yield folder


def _init_path(options: TrainOptions) -> Path | None:
    if options.init is None or options.init_path is not None:
        return options.init_path
    return local_model(options.init, options.output_options)


def local_model(init: str, options: Mapping[str, Any]) -> Path:
    """The local path of the model ``init``. If it is a URL, the model is fetched.

    ``options`` are its storage options. Raises StorageError.
    """
    if "://" not in init:
        return Path(init)
    from ..stores.store import Store, storage_errors

    _fetched.append(tempfile.TemporaryDirectory(prefix="strata-model-"))
    folder = Path(_fetched[-1].name)
    with storage_errors(init, f"its {TRAINING_FILE} cannot be read"):
        Store(init, options).fetch(TRAINING_FILE, folder / TRAINING_FILE)
    return folder
