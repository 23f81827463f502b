"""The samples of a shard: which files belong together, and which of them is the picture."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from codec.images.files import EXTENSIONS

from .tar_members import Member

# webdataset's rule: the key is the path up to the first dot of the base name
_KEY_AND_FIELD = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$", re.DOTALL)
# A worker holds several samples at once, each in several copies while its row is written; Parquet
# takes at most 2 GiB of a row's fields.
MAX_SAMPLE_BYTES = 1 << 28
SIDE_FIELDS = (
    "because they are side fields of other samples: in a tar a sample is all files whose names are "
    "the same up to the first dot, so 2024.01-a.png and 2024.02-b.png are one; in a folder up to "
    "the last, so a.jpg and a.png are one"
)


@dataclass(frozen=True)
class Sample:
    """A sample of WebDataset: the members that share a key, in the tar's order.

    ``filtered`` says why WebDataset would skip it, ``problem`` why it is bad.
    """

    key: str
    fields: tuple[tuple[str, Member], ...]
    problem: str = ""
    filtered: str = ""

    @property
    def size(self) -> int:
        """Bytes of all its fields together."""
        return sum(member.size for _, member in self.fields)

    @property
    def image_field(self) -> str | None:
        """The field to encode."""
        return image_field([name for name, _ in self.fields])

    @property
    def side_pictures(self) -> int:
        """How many pictures it has beside the one to encode."""
        return max(0, sum(is_picture(name) for name, _ in self.fields) - 1)


def image_field(names: Sequence[str]) -> str | None:
    """The first field whose name, or else whose extension, is a picture's."""
    whole = (name for name in names if name.lower() in EXTENSIONS)
    return next(whole, None) or next(filter(is_picture, names), None)


def is_picture(field: str) -> bool:
    """Whether a field's name, or its extension, is a picture's."""
    return field.lower().rsplit(".", 1)[-1] in EXTENSIONS


def tar_key(key: str) -> str:
    """``key`` with ``%2E`` for each dot of its last part, because WebDataset ends keys at a dot.

    Keys from tars have no such dots; keys from folders and tables may have some.
    """
    folder, slash, base = key.rpartition("/")
    return folder + slash + base.replace(".", "%2E")


def group_samples(members: Sequence[Member]) -> list[Sample]:
    """Group consecutive members by key, and mark samples that are filtered or have a problem."""
    groups: list[tuple[str, list[tuple[str, Member]], str, str]] = []
    for member in members:
        match = _KEY_AND_FIELD.match(member.name)
        base = member.name.rsplit("/", 1)[-1]
        if match is None or (member.name.startswith("__") and member.name.endswith("__")):
            hidden = base.startswith(".") or match is not None
            problem = "" if hidden else "its name has no extension, so WebDataset sees no sample"
            filtered = "a hidden or meta file, which WebDataset skips" if hidden else ""
            groups.append((member.name, [("", member)], problem, filtered))
        elif groups and groups[-1][0] == match[1] and not (groups[-1][2] or groups[-1][3]):
            groups[-1][1].append((match[2], member))
        else:
            groups.append((match[1], [(match[2], member)], "", ""))
    times = Counter(key for key, *_ in groups)
    return [
        Sample(key, tuple(fields), problem or _problem(key, fields, times[key]), filtered)
        for key, fields, problem, filtered in groups
    ]


def sample_of(
    key: str, fields: Sequence[tuple[str, Member]], times: int = 1, filtered: str = ""
) -> Sample:
    """A sample, with its problem if it has one. ``times`` is how often its key occurs."""
    return Sample(key, tuple(fields), _problem(key, fields, times), filtered)


def _problem(key: str, fields: Sequence[tuple[str, Member]], times: int) -> str:
    """Why the sample is bad, or ''."""
    if times > 1:
        return "its key occurs again later: duplicate samples, or fields that lie apart"
    names = [name for name, _ in fields]
    repeated = next((name for name, count in Counter(names).items() if count > 1), None)
    if repeated is not None:
        return f"the field {repeated!r} occurs twice"
    for name, member in fields:
        if member.problem:
            return f"the field {name!r} {member.problem}"
        if not _is_text(name):
            return f"the field {name!r} has a name that is not UTF-8"
    return "its key has a zero byte" if "\0" in key else ""


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in name
