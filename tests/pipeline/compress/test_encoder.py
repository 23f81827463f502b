"""A shard's encoder: its memory, its reading, and when it reports a broken codec."""

import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codec import EncodedImage, load_codec
from codec.coder_process import Helper, Quantised
from codec.images.files import write_image
from pipeline.compress import encoder as encoder_module
from pipeline.compress.encoder import SampleEncoder
from pipeline.compress.loading import load
from pipeline.compress.settings import CompressSettings
from pipeline.dataset.rows import Row
from pipeline.running.stages import StageClock
from pipeline.sources.listing import expand_inputs
from pipeline.sources.samples import MAX_SAMPLE_BYTES, Sample, group_samples
from pipeline.sources.shards import ShardFile, open_shard
from pipeline.sources.tar_members import Member
from pipeline.stores.threads import ahead_within
from tests.codec.small_models import write_nested_model
from tests.pipeline.makers import ToyCodec, png, samples, write_tar


def settle(state: Callable[[], Any]) -> Any:
    """The value of ``state`` once it has stayed the same for a while."""
    value, since, deadline = state(), time.monotonic(), time.monotonic() + 30
    while time.monotonic() < min(deadline, since + 0.3):
        time.sleep(0.01)
        if state() != value:
            value, since = state(), time.monotonic()
    return value


def encoder_for(toy: ToyCodec, **changes: Any) -> SampleEncoder:
    return SampleEncoder(toy, CompressSettings("out", "f", toy.model_id, 4, **changes))


def rows_of(
    encoder: SampleEncoder, files: Iterable[tuple[str, bytes]], folder: Path, **options: Any
) -> Iterator[Row]:
    (shard,) = expand_inputs([str(write_tar(folder / "x.tar", files))])
    with open_shard(shard, folder) as file:
        yield from encoder.rows(
            file, enumerate(file.samples), StageClock(), lambda rows: None, **options
        )


@pytest.mark.parametrize("costs", [[10] * 60, [1] * 30 + [40] * 30, [40] * 10 + [1] * 50])
def test_what_waits_fits_a_budget_whatever_comes(costs: list[int]) -> None:
    """The caller takes nothing: what is done and waiting is all that was ever begun."""
    begun: list[int] = []

    def work(cost: int) -> int:
        begun.append(cost)
        return cost

    with ThreadPoolExecutor(3) as pool:
        results = ahead_within(pool, work, costs, lambda c: c, budget=100, count=40, threads=3)
        taken: list[int] = []
        for result in results:
            taken.append(result)
            settled = settle(lambda: len(begun)) if len(taken) in (1, 25, 40) else len(begun)
            waits = begun[len(taken) : settled]
            assert sum(waits) < 100 + 3 * max(costs)
            assert len(waits) <= 40
    assert taken == costs


def test_small_things_are_read_far_ahead_without_the_caller() -> None:
    begun: list[int] = []
    with ThreadPoolExecutor(2) as pool:
        results = ahead_within(
            pool, begun.append, range(100), lambda _: 1, budget=1000, count=40, threads=2
        )
        next(results)
        assert settle(lambda: len(begun)) == 41  # the first was taken, and its place as well
        results.close()  # type: ignore[attr-defined]
        assert settle(lambda: len(begun)) == 41


def test_errors_come_in_their_place() -> None:
    def source() -> Iterator[int]:
        yield from (1, 2, 3)
        raise OSError("the list was cut")

    limits: dict[str, Any] = {"budget": 100, "count": 40, "threads": 2}
    with ThreadPoolExecutor(2) as pool:
        got: list[float] = []
        with pytest.raises(OSError, match="the list was cut"):
            got.extend(ahead_within(pool, lambda n: n, source(), lambda _: 1, **limits))
        assert got == [1, 2, 3]
        got.clear()
        with pytest.raises(ZeroDivisionError):
            got.extend(ahead_within(pool, lambda n: 1 / n, [1, 1, 0, 1], lambda _: 1, **limits))
        assert got == [1, 1]


def most_alive(
    encoder: SampleEncoder, files: Iterable[tuple[str, bytes]], folder: Path
) -> tuple[int, int]:
    """Most bytes held at once for samples without their rows, and the rows, with a slow device."""
    lock, alive, peak = threading.Lock(), 0, 0
    load = encoder_module.load

    def gone(cost: int) -> None:
        nonlocal alive
        with lock:
            alive -= cost

    def counting(*arguments: Any) -> Any:
        nonlocal alive, peak
        loaded = load(*arguments)
        with lock:
            alive += loaded.cost
            peak = max(peak, alive)
        weakref.finalize(loaded, gone, loaded.cost)
        return loaded

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_module, "load", counting)
        rows = sum(1 for _ in rows_of(encoder, files, folder))
    return peak, rows


@pytest.mark.parametrize("what", ["large pictures", "small, then large", "large fields"])
def test_memory_does_not_depend_on_the_shard(
    what: str, toy: ToyCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = write_image(np.zeros((100, 100, 3), np.uint8), None, "png")
    files = {
        "large pictures": [(f"{n}.png", large) for n in range(80)],
        "small, then large": [(f"{n}.png", png(n, 2, 2) if n < 40 else large) for n in range(120)],
        "large fields": [
            one
            for n in range(80)
            for one in ((f"{n}.png", png(n, 2, 2)), (f"{n}.npy", bytes(30000)))
        ],
    }[what]
    begin = toy.begin_encode

    def slow(images: Any, **options: Any) -> Any:
        time.sleep(0.02)
        return begin(images, **options)

    monkeypatch.setattr(toy, "begin_encode", slow)
    monkeypatch.setattr(encoder_module, "WINDOW_BYTES", 200_000)
    peak, rows = most_alive(encoder_for(toy, threads=2, batch_size=4), files, tmp_path)
    assert rows == len({name.split(".")[0] for name, _ in files})
    sample = 31_000
    assert peak <= 3 * 200_000 + 4 * sample  # three windows; two threads' and two in hand


def test_a_giant_field_is_never_read(toy: ToyCodec) -> None:
    class Shard:
        def read(self, member: Member) -> bytes:
            assert member.size <= MAX_SAMPLE_BYTES
            return bytes(member.size)

    (sample,) = group_samples([Member("k.jpg", 512, 100), Member("k.mp4", 2048, 3 << 30)])
    hidden = Sample("._k", (("", Member("._k", 512, 3 << 30)),), filtered="hidden")
    for keep in ("bad", "always"):
        settings = CompressSettings("out", "f", toy.model_id, 4, keep_original=keep)
        file: ShardFile = Shard()  # type: ignore[assignment]
        row = load(settings, file, 0, sample).row
        assert row.status == "bad"
        assert row.fields == (("jpg", bytes(100)), ("mp4", None))
        assert load(settings, file, 0, hidden).row.fields == (("", None),)


def test_many_failures_in_a_row_are_no_broken_codec_once_one_picture_worked(
    toy: ToyCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_module, "WINDOW_ROWS", 10)
    unlucky = [(f"t{n}.png", png(n, 24, 13)) for n in range(30)]
    encoder = encoder_for(toy)
    rows = list(rows_of(encoder, [*samples(10), *unlucky], tmp_path))
    assert [row.status for row in rows] == ["ok"] * 10 + ["bad"] * 30
    with pytest.raises(RuntimeError, match="no picture could be encoded: FloatingPoint"):
        list(rows_of(encoder, unlucky, tmp_path))  # another shard counts anew
    assert len(list(rows_of(encoder, unlucky, tmp_path, strict=False))) == 30


def test_a_broken_codec_is_noticed_in_windows_of_few_pictures(
    toy: ToyCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_module, "WINDOW_ROWS", 3)
    unlucky = [(f"t{n}.png", png(n, 24, 13)) for n in range(30)]
    with pytest.raises(RuntimeError, match="no picture could be encoded"):
        list(rows_of(encoder_for(toy), unlucky, tmp_path))


def test_the_device_begins_with_the_first_batch(
    toy: ToyCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not wait until as many samples are loaded as memory can hold."""
    begun, kept_waiting = threading.Event(), threading.Event()
    encoder = encoder_for(toy, batch_size=4)
    begin = toy.begin_encode

    def noting(images: Any, **options: Any) -> Any:
        begun.set()
        return begin(images, **options)

    def loading(settings: CompressSettings, file: ShardFile, index: int, *arguments: Any) -> Any:
        if index > 4 and not kept_waiting.is_set() and not begun.wait(20):
            kept_waiting.set()
        return load(settings, file, index, *arguments)

    monkeypatch.setattr(toy, "begin_encode", noting)
    monkeypatch.setattr(encoder_module, "load", loading)
    assert [row.index for row in rows_of(encoder, samples(40), tmp_path)] == list(range(40))
    assert not kept_waiting.is_set()


@pytest.mark.parametrize(("device", "most"), [("cpu", 2), ("cuda", 8)])
def test_batches_of_cpus_are_smaller(
    device: str, most: int, toy: ToyCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the first pictures of a job are coded soon."""
    monkeypatch.setattr(encoder_module, "BATCH_PIXELS", 8 * 24 * 14)
    monkeypatch.setattr(encoder_module, "CPU_BATCH_PIXELS", 2 * 24 * 14)
    counts: list[int] = []
    encoder = encoder_for(toy, device=device)
    files = [(f"{n}.png", png(n, 24, 14)) for n in range(20)]
    assert len(list(rows_of(encoder, files, tmp_path, on_coded=counts.append))) == 20
    assert sum(counts) == 20
    assert max(counts) == most


def test_a_slow_device_gets_few_pictures_at_a_time(
    toy: ToyCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their rows are there together: all of them would be lost with the worker."""
    begin, coded = toy.begin_encode, [0]

    def slow(images: Any, **options: Any) -> Any:
        time.sleep(0.01 * len(images))
        return begin(images, **options)

    monkeypatch.setattr(toy, "begin_encode", slow)
    monkeypatch.setattr(encoder_module, "WINDOW_SECONDS", 0.1)  # ten pictures, or fewer
    write_tar(tmp_path / "a.tar", samples(250))
    (shard,) = expand_inputs([str(tmp_path / "a.tar")])
    lost = []

    def count(number: int) -> None:
        coded[0] += number

    with open_shard(shard, tmp_path) as file:
        numbered = list(enumerate(file.samples))
        encoder = encoder_for(toy, batch_size=4)
        for row in encoder.rows(file, numbered, StageClock(), lambda rows: None, count):
            lost.append(coded[0] - row.index)
    assert len(lost) == 250
    assert max(lost) <= 90


def test_a_process_codes_beside_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not beside a CPU, which has other work. Rows are the same, also when it is killed."""
    codec = load_codec(write_nested_model(tmp_path))
    files = samples(6)

    def encoder(device: str, threads: int) -> SampleEncoder:
        settings = CompressSettings("out", "f", codec.model_id, 4, batch_size=2)
        return SampleEncoder(codec, replace(settings, threads=threads, device=device))

    pids: list[int | None] = []
    code = Helper.code

    def killed(self: Helper, pictures: Sequence[Quantised]) -> list[EncodedImage]:
        if len(pids) == 1 and self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)
        streams = code(self, pictures)
        pids.append(self.pid)
        return streams

    monkeypatch.setattr(Helper, "code", killed)
    alone = list(rows_of(encoder("cpu", 2), files, tmp_path))
    assert list(rows_of(encoder("cuda", 1), files, tmp_path)) == alone
    assert not pids
    together = list(rows_of(encoder("cuda", 2), files, tmp_path))
    assert together == alone
    assert all(row.status == "ok" for row in together)
    first, second, third = pids
    assert first is not None
    assert second is None  # it did not answer: that batch was coded here
    assert third not in (None, first)
