"""Corpora <-> datasets of streams: tar shards in, Parquet with one column per layer out.

Reading: ``open_dataset``. For training: ``StrataImages``, ``ray_dataset``. Each job is a function
with the name of its script in ``jobs/``, and takes its options as one dataclass:

    summary = compress_dataset(CompressOptions(("photos.tar",), "archive", "uqdm"))
    dataset = open_dataset("archive")
    picture = dataset.image("some/key", layers=2)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compress.estimate import estimate as estimate_compression
    from .compress.job import CompressOptions
    from .compress.job import compress as compress_dataset
    from .decode.job import DecodeOptions
    from .decode.job import decode as decode_dataset
    from .evaluate.job import EvaluateOptions
    from .evaluate.job import evaluate as evaluate_models
    from .loading import KeptOriginal, StrataImages, decode_batches
    from .loading.ray_data import RayDecoder, ray_dataset
    from .manage.dataset_info import DatasetInfo
    from .manage.delete_job import DeleteOptions, DeleteSummary, delete_samples
    from .manage.info import info_dataset
    from .manage.merge_job import MergeOptions, MergeSummary, merge_datasets
    from .reader.dataset import (
        CursorError,
        DamagedDataError,
        Dataset,
        DatasetError,
        Record,
        UnknownKeyError,
        open_dataset,
    )
    from .reader.index_keys import index_keys
    from .running.progress.summary import Summary
    from .running.tasks import Policy
    from .serving.job import serve_previews
    from .serving.options import ServeOptions
    from .training.job import train_model
    from .training.options import TrainOptions
    from .verify.job import Subset, VerifyOptions
    from .verify.job import verify as verify_dataset
    from .verify.report import VerifyReport

__all__ = [
    "CompressOptions",
    "CursorError",
    "DamagedDataError",
    "Dataset",
    "DatasetError",
    "DatasetInfo",
    "DecodeOptions",
    "DeleteOptions",
    "DeleteSummary",
    "EvaluateOptions",
    "KeptOriginal",
    "MergeOptions",
    "MergeSummary",
    "Policy",
    "RayDecoder",
    "Record",
    "ServeOptions",
    "StrataImages",
    "Subset",
    "Summary",
    "TrainOptions",
    "UnknownKeyError",
    "VerifyOptions",
    "VerifyReport",
    "compress_dataset",
    "decode_batches",
    "decode_dataset",
    "delete_samples",
    "estimate_compression",
    "evaluate_models",
    "index_keys",
    "info_dataset",
    "merge_datasets",
    "open_dataset",
    "ray_dataset",
    "serve_previews",
    "train_model",
    "verify_dataset",
]

# Where each name is, and what it is called there: ``compress`` here is a folder, so the functions
# have the names of the jobs' scripts.
_PLACES = {
    **dict.fromkeys(("KeptOriginal", "StrataImages", "decode_batches"), "loading"),
    **dict.fromkeys(("RayDecoder", "ray_dataset"), "loading.ray_data"),
    "DatasetInfo": "manage.dataset_info",
    "info_dataset": "manage.info",
    **dict.fromkeys(("MergeOptions", "MergeSummary", "merge_datasets"), "manage.merge_job"),
    **dict.fromkeys(("DeleteOptions", "DeleteSummary", "delete_samples"), "manage.delete_job"),
    "CompressOptions": "compress.job",
    "DecodeOptions": "decode.job",
    "EvaluateOptions": "evaluate.job",
    "Policy": "running.tasks",
    "ServeOptions": "serving.options",
    "Subset": "verify.job",
    "Summary": "running.progress.summary",
    "TrainOptions": "training.options",
    "VerifyOptions": "verify.job",
    "VerifyReport": "verify.report",
    "compress_dataset": "compress.job:compress",
    "decode_dataset": "decode.job:decode",
    "estimate_compression": "compress.estimate:estimate",
    "evaluate_models": "evaluate.job:evaluate",
    "index_keys": "reader.index_keys",
    "serve_previews": "serving.job",
    "train_model": "training.job",
    "verify_dataset": "verify.job:verify",
}


def __getattr__(name: str) -> Any:
    """Names are imported at their first use: torch and Ray take seconds, and may not be there."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, original = _PLACES.get(name, "reader.dataset").partition(":")
    value = getattr(importlib.import_module(f".{module}", __name__), original or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
