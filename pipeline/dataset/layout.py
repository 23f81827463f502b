"""Every path and name inside a dataset.

    dataset.json             the plan: parameters and their fingerprint
    models/<model_id>/       the model file, its reconstruction heads, and their cards
    data/<name>.parquet      one file per shard
    index/<name>.parquet     of each data file: where every layer of every picture lies
    keys/<digest>.bin        the map of keys to data files
    commits/<name>.json      the record of each data file
    deleted/<digest>.json    what was deleted, by hashes of keys
    .strata/commits/         of a copy: records of data files that have no row in it
    .strata/saved/           rows of shards that are still being encoded
    parts/<number>.json      of folders of pictures: which files belong to which shard
    manifests/<digest>.jsonl.gz   data files, a line each, that are too many for one manifest
    manifest-<number>.json   what readers trust; the highest number wins

Nothing is overwritten, so a file that replaces another has a name of its own: the first file of a
shard has the shard's name, its n-th replacement ``<name>.<n>``; n is its **generation**. Paths are
relative to the dataset's URL.
"""

import hashlib
import re
from pathlib import Path

from codec.models.heads import head_file
from codec.models.zoo import CARD_FILE, MODEL_FILE, card_file

from ..sources.shards import Shard
from ..stores.store import Store

PLAN_NAME = "dataset.json"
MODELS = "models"
DATA = "data"
INDEX = "index"
KEYS = "keys"
COMMITS = "commits"
DELETED = "deleted"
EMPTY_COMMITS = ".strata/commits"
SAVED = ".strata/saved"
PARTS = "parts"
MANIFESTS = "manifests"
FORMAT_VERSION = 1  # of plans and manifests
SUFFIX = ".parquet"  # of data files and of their indexes
RECORD_SUFFIX = ".json"
# Folders in which each shard has a file.
FOLDERS = ((DATA, SUFFIX), (INDEX, SUFFIX), (COMMITS, RECORD_SUFFIX))
SHARD_NAME = re.compile(r".+-[0-9a-f]{12}(?:\.[1-9]\d*)?")  # what shard_name gives, any generation
KEY_MAP_NAME = re.compile(r"[0-9a-f]{32}\.bin")
WRITTEN = re.compile(
    r"(data|index|keys|commits|deleted|parts|manifests|models/[^/]+|\.strata/[^/]+)/[^/]+|[^/]+\.json"
)  # any path above
_HASH = re.compile(r"-[0-9a-f]{12}$")
_GENERATION = re.compile(r"(.+)\.([1-9]\d*)")
_SAVED = re.compile(r"(.+)\.(\d+)-(\d+)\.parquet")
_PART_LIST = re.compile(r"(\d{6})\.json")
MANIFEST_PART = re.compile(r"manifests/[0-9a-f]{32}\.jsonl\.gz")
_MANIFEST = re.compile(r"manifest-(\d{6})\.json")


def shard_name(shard: Shard, plan_fingerprint: str) -> str:
    """A deterministic file name for a version of a shard under a plan."""
    identity = "\n".join([shard.url, str(shard.size), shard.etag, plan_fingerprint])
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", shard.stem)[:80].lstrip(".") or "shard"
    return f"{stem}-{hashlib.sha256(identity.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}"


def shard_stem(name: str) -> str:
    """The part of ``shard_name`` that comes from the shard's own name."""
    return _HASH.sub("", name)


def generation_name(name: str, generation: int) -> str:
    """The name of a shard's n-th replacement; generation 0 is the first file, ``name`` itself."""
    return f"{name}.{generation}" if generation else name


def split_generation(name: str) -> tuple[str, int]:
    """The inverse of ``generation_name``: a shard's own name never ends in a dot and a number."""
    match = _GENERATION.fullmatch(name)
    return (match[1], int(match[2])) if match else (name, 0)


def data_path(name: str) -> str:
    """The data file ``name``."""
    return f"{DATA}/{name}{SUFFIX}"


def index_path(name: str) -> str:
    """The index of the data file ``name``."""
    return f"{INDEX}/{name}{SUFFIX}"


def record_path(name: str, folder: str = COMMITS) -> str:
    """The commit record of the data file ``name``."""
    return f"{folder}/{name}{RECORD_SUFFIX}"


def saved_path(name: str, start: int, stop: int) -> str:
    """The rows ``start`` to ``stop`` of the data file ``name`` while that is being made."""
    return f"{SAVED}/{name}.{start}-{stop}{SUFFIX}"


def saved_rows(file: str) -> tuple[str, int, int]:
    """The data file's name, start and stop of a file in ``SAVED``; ("", 0, 0) for any other."""
    match = _SAVED.fullmatch(file)
    return (match[1], int(match[2]), int(match[3])) if match else ("", 0, 0)


def key_map_path(digest: str) -> str:
    """The map of keys for the data files with this digest; see ``reader/key_map.py``."""
    return f"{KEYS}/{digest}.bin"


def deletion_path(digest: str) -> str:
    """What says which samples were deleted; see ``deletions.py``."""
    return f"{DELETED}/{digest}{RECORD_SUFFIX}"


def part_list_path(number: int) -> str:
    """The n-th list of parts of folders."""
    return f"{PARTS}/{number:06d}.json"


def part_list_number(name: str) -> int:
    """The number of a file in ``PARTS``; 0 for any other file."""
    match = _PART_LIST.fullmatch(name)
    return int(match[1]) if match else 0


def model_folder(model_id: str) -> str:
    """The folder of a model."""
    return f"{MODELS}/{model_id}"


def model_path(model_id: str) -> str:
    """A model's file."""
    return f"{model_folder(model_id)}/{MODEL_FILE}"


def card_path(model_id: str) -> str:
    """A model's card."""
    return f"{model_folder(model_id)}/{CARD_FILE}"


def head_paths(model_id: str, decoder: str) -> tuple[str, str]:
    """A model's reconstruction head and its card, see ``codec.models.heads``."""
    file = head_file(Path(MODEL_FILE), decoder)
    return f"{model_folder(model_id)}/{file}", f"{model_folder(model_id)}/{card_file(file)}"


def names_in(store: Store, folder: str) -> list[str]:
    """The names of Strata's files in a folder in which each shard has one, sorted."""
    suffix = dict(FOLDERS)[folder]
    files = (file.removesuffix(suffix) for file in store.sizes(folder) if file.endswith(suffix))
    return sorted(filter(SHARD_NAME.fullmatch, files))


def paths_in(store: Store, *folders: str) -> dict[str, int]:
    """The paths of the files in some folders, and their sizes in bytes."""
    return {
        f"{folder}/{file}": size for folder in folders for file, size in store.sizes(folder).items()
    }


def manifest_part_path(digest: str) -> str:
    """The part of a manifest with this digest; see ``manifest.py``."""
    return f"{MANIFESTS}/{digest}.jsonl.gz"


def manifest_name(number: int) -> str:
    """The n-th manifest."""
    return f"manifest-{number:06d}.json"


def manifest_number(name: str) -> int:
    """The inverse of ``manifest_name``; 0 for any other name."""
    match = _MANIFEST.fullmatch(name)
    return int(match[1]) if match else 0
