"""A tar is read whole or refused with a reason, wherever it was cut and whoever wrote it."""

import gzip
import io
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
import webdataset

from pipeline.sources.listing import expand_inputs
from pipeline.sources.samples import group_samples
from pipeline.sources.shards import Shard, open_shard
from pipeline.sources.tar_members import MAX_PADDING, Member, ShardError, read_members
from pipeline.stores.gzip_limits import GzipLimits
from tests.pipeline.makers import png, samples, tar_bytes, write_tar


def members(data: bytes) -> list[Member]:
    return read_members(io.BytesIO(data), len(data), "x.tar")


def end_of(data: bytes) -> int:
    """The offset behind the two zero blocks, where the padding begins."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        last = tar.getmembers()[-1]
        return last.offset_data + -(-last.size // 512) * 512 + 1024


def test_a_tar_cut_anywhere_is_refused() -> None:
    data = tar_bytes(samples(2))
    whole = end_of(data)
    for cut in [*range(0, whole, 512), *range(1, whole, 97), whole - 1]:
        with pytest.raises(ShardError, match=r"x\.tar"):
            members(data[:cut])
    assert members(data[:whole]) == members(data)  # only padding is missing


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_are_read_as_tarfile_reads_them(format: int) -> None:
    names = ["a.png", "dir/sub.d/b.json", "ü/日本.png", "with space, 'quotes' & $.txt", "x" * 90]
    if format != tarfile.USTAR_FORMAT:
        names += ["long/" * 60 + "a.png", "n" * 300 + ".json"]
    data = tar_bytes([(name, name.encode()) for name in names], format)
    found = members(data)
    assert [member.name for member in found] == names
    assert [data[m.offset : m.offset + m.size].decode() for m in found] == names


def test_names_that_are_no_utf8_survive() -> None:
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        assert members(tar_bytes([(name, b"x")], format))[0].name == name


def test_a_tar_written_by_gnu_tar(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.png").write_bytes(png())
    (tmp_path / "d" / ("b" * 200 + ".txt")).write_bytes(b"side")
    (tmp_path / "d" / "link.png").symlink_to("a.png")
    subprocess.run(["tar", "cf", "x.tar", "--sort=name", "d"], cwd=tmp_path, check=True)
    found = members((tmp_path / "x.tar").read_bytes())
    assert [member.name for member in found] == ["d/a.png", f"d/{'b' * 200}.txt", "d/link.png"]
    assert "link" in found[-1].problem


@pytest.mark.parametrize("holes", [1, 40])
@pytest.mark.parametrize("format", ["gnu", "posix", "posix --sparse-version=0.1"])
def test_sparse_members_are_named_and_cost_no_other(
    tmp_path: Path, format: str, holes: int
) -> None:
    """With four extents and more a map follows the header."""
    with open(tmp_path / "b.bin", "wb") as file:
        for number in range(holes):
            file.seek(number << 17)
            file.write(b"x" * 4096)
        file.truncate(holes << 17)
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(png())
    command = ["tar", "cSf", "x.tar", f"--format={format}".split(" ")[0], *format.split(" ")[1:]]
    command += ["a.png", "b.bin", "b.png", "c.png"]
    subprocess.run(command, cwd=tmp_path, check=True)
    data = (tmp_path / "x.tar").read_bytes()
    found = members(data)
    assert [member.name for member in found] == ["a.png", "b.bin", "b.png", "c.png"]
    assert "sparse" in found[1].problem
    assert [data[m.offset : m.offset + m.size] == png() for m in found] == [True, False, True, True]
    a, b, c = group_samples(found)
    assert (a.problem, c.problem) == ("", "")
    assert "'bin' is stored as a sparse file" in b.problem


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a tar"),
        (b"PAR1" * 1000, "not a tar"),
        (png(), "not a tar"),
        (gzip.compress(tar_bytes(samples(1))), "not a tar"),
        (tar_bytes(samples(1)) * 2, "concatenated"),
        (tar_bytes([]) + bytes(MAX_PADDING), "broken"),
    ],
)
def test_what_is_no_tar_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ShardError, match=words):
        members(data)


def test_a_hole_and_a_damaged_header_are_found() -> None:
    data = tar_bytes(samples(3))
    second = members(data)[3].offset - 512
    hole = data[:second] + bytes(1024) + data[second + 1024 :]
    with pytest.raises(ShardError, match=f"offset {second}"):
        members(hole)
    flipped = bytearray(data)
    flipped[second] ^= 1
    with pytest.raises(ShardError, match=f"offset {second}"):
        members(bytes(flipped))


def test_an_empty_tar_has_no_members() -> None:
    assert members(tar_bytes([])) == []


def problems(names: list[str]) -> dict[str, str]:
    grouped = group_samples([Member(name, 0, 1) for name in names])
    return {sample.key: sample.problem or sample.filtered for sample in grouped}


def test_samples_are_grouped_as_webdataset_does(tmp_path: Path) -> None:
    files = [*samples(3), ("d.x/a.b.png", b"1"), ("d.x/a.seg.png", b"2"), ("./e.PNG", b"3")]
    path = write_tar(tmp_path / "x.tar", files)
    theirs = [
        (sample["__key__"], sorted(name for name in sample if not name.startswith("__")))
        for sample in webdataset.WebDataset(str(path), shardshuffle=False)
    ]
    ours = group_samples(members(path.read_bytes()))
    lowered = [(s.key, sorted(name.lower() for name, _ in s.fields)) for s in ours]
    assert lowered == theirs
    assert not any(sample.problem or sample.filtered for sample in ours)


def test_duplicate_and_interleaved_keys_are_bad_samples() -> None:
    found = problems(["a.png", "b.png", "a.json", "c.png", "c.json"])
    assert "again" in found["a"]
    assert found["b"] == found["c"] == ""
    assert "twice" in problems(["a.png", "a.png"])["a"]


def test_nothing_is_dropped_because_of_its_name() -> None:
    found = problems([".hidden.png", "__meta__", "README", "a.png", "._a.png"])
    assert list(found) == [".hidden.png", "__meta__", "README", "a", "._a.png"]
    assert "extension" in found["README"]
    assert "skips" in found["._a.png"]


@pytest.mark.parametrize(
    ("names", "image"),
    [
        (["json", "jpg"], "jpg"),
        (["seg.png", "JPG"], "JPG"),
        (["txt", "image.webp"], "image.webp"),
        (["txt", "cls"], None),
    ],
)
def test_the_picture_among_the_fields(names: list[str], image: str | None) -> None:
    (sample,) = group_samples([Member(f"k.{name}", 0, 1) for name in names])
    assert sample.image_field == image


def test_inputs_of_every_kind(tmp_path: Path) -> None:
    for number in range(12):
        write_tar(tmp_path / f"a-{number:02d}.tar", samples(1))
    write_tar(tmp_path / "odd[1].tar", samples(1))
    write_tar(tmp_path / "z.tar.gz", samples(1), mode="w:gz")
    (tmp_path / "note.txt").write_text("no shard")

    def count(*patterns: str) -> int:
        return len(expand_inputs([str(tmp_path / pattern) for pattern in patterns]))

    assert count("") == 14
    assert count("a-*.tar") == 12
    assert count("a-{03..05}.tar") == 3
    assert count("a-{03..05}.tar", "a-04.tar") == 3
    assert count("odd[1].tar") == 1


@pytest.mark.parametrize("pattern", ["none.tar", "none-*.tar", "a-{0..3}.tar", "nosuch://x/y.tar"])
def test_inputs_that_match_nothing(tmp_path: Path, pattern: str) -> None:
    from pipeline.stores.store import StorageError

    url = pattern if "://" in pattern else str(tmp_path / pattern)
    with pytest.raises(StorageError, match="a-0" if "{" in pattern else "no"):
        expand_inputs([url])


def test_a_gzipped_shard_and_a_cut_one(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar.gz", samples(2), mode="w:gz")
    (shard,) = expand_inputs([str(path)])
    with open_shard(shard, tmp_path) as opened:
        assert [sample.key for sample in opened.samples] == ["s0000", "s0001"]
        assert opened.read(opened.samples[1].fields[1][1]) == b'{"n": 1}'
    data = path.read_bytes()
    for cut in range(2, len(data), 101):
        path.write_bytes(data[:cut])
        with pytest.raises(ShardError), open_shard(*expand_inputs([str(path)]), tmp_path):
            pass


def test_a_shard_that_shrank_after_it_was_listed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", samples(2))
    shard = Shard(str(path), path.stat().st_size + 512, "")
    with pytest.raises(OSError, match="have arrived"), open_shard(shard, tmp_path):
        pass


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (GzipLimits(), r"to more than 16777216; .*--max-gzip-ratio \(50\)"),
        (GzipLimits(1100, 0.02), r"--max-unpacked-gib \(0.02\)"),
        (GzipLimits(1100), "the tar ends at offset 0"),  # all of it was unpacked
    ],
)
def test_gzip_that_expands_without_end(tmp_path: Path, limits: GzipLimits, words: str) -> None:
    """Kilobytes of it used to write a thousand times as many of scratch."""
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(bytes(40 << 20)))
    (shard,) = expand_inputs([str(path)])
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with pytest.raises(ShardError, match=words), open_shard(shard, scratch, limits=limits):
        pass
    assert not list(scratch.iterdir())


def test_gzip_that_may_expand(tmp_path: Path) -> None:
    zeros = [("a.png", png()), ("a.npy", bytes(20 << 20))]
    path = write_tar(tmp_path / "x.tar.gz", zeros, mode="w:gz")
    (shard,) = expand_inputs([str(path)])
    with pytest.raises(ShardError), open_shard(shard, tmp_path):
        pass
    with open_shard(shard, tmp_path, limits=GzipLimits(2000)) as opened:
        assert opened.read(opened.samples[0].fields[1][1]) == bytes(20 << 20)


def pax_tar(records: bytes, count: int = 1, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """A tar with one PAX header of these bytes, and ``count`` empty members."""
    header = tarfile.TarInfo("pax")
    header.type, header.size = kind, len(records)
    packed = header.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512)
    names = (f"{number:06d}.png" for number in range(count))
    files = (tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT) for name in names)
    return packed + b"".join(files) + bytes(1024)


def record(keyword: str, value: str) -> bytes:
    """A PAX record, whose length counts itself."""
    text = f" {keyword}={value}\n".encode()
    size = next(n for n in range(len(text), len(text) + 9) if n == len(text) + len(str(n)))
    return str(size).encode() + text


@pytest.mark.parametrize("size", ["\u00b2", "\u0663", "-1", "1_0", " 1", "9" * 5000, "0x1"])
def test_odd_sizes_in_pax_headers_are_refused_in_words(size: str) -> None:
    with pytest.raises(ShardError, match="a PAX header says size="):
        members(pax_tar(record("size", size)))
    assert members(pax_tar(record("size", "0")))[0].size == 0


def test_global_pax_headers_cost_no_time_for_each_member() -> None:
    """50,000 keys took 5 ms for each member."""
    many = b"".join(record(f"a{number}", "") for number in range(50_000))
    started = time.process_time()
    with pytest.raises(ShardError, match="more than 1000 global PAX records"):
        members(pax_tar(many, 4_000, tarfile.XGLTYPE))
    some = b"".join(record(f"a{number}", "") for number in range(1000))
    assert len(members(pax_tar(some, 4_000, tarfile.XGLTYPE))) == 4_000
    assert time.process_time() - started < 10
    sparse = members(pax_tar(record("GNU.sparse.major", "1"), 3, tarfile.XGLTYPE))
    assert all(one.problem.startswith("is stored as a sparse file") for one in sparse)
