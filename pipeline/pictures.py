"""The small arts that the workers need: look ahead in threads, batch by size, choose layers."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from threading import Lock
from typing import TypeVar

from codec import Codec, EncodedImage
from codec.numerics.memory import is_out_of_memory, release_memory

T = TypeVar("T")
R = TypeVar("R")


def ahead(
    pool: Executor, function: Callable[[T], R], items: Iterable[T], limit: Callable[[], int]
) -> Iterator[R]:
    """``map`` in threads, in order, with at most ``limit()`` results waiting or under way.

    ``limit`` is asked anew for every item, so that it can follow the size of the pictures.
    """
    waiting: deque[Future[R]] = deque()
    source = iter(items)
    try:
        while True:
            while len(waiting) < max(1, limit()):
                try:
                    waiting.append(pool.submit(function, next(source)))
                except StopIteration:
                    break
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def ahead_within(
    pool: Executor,
    function: Callable[[T], R],
    items: Iterable[T],
    cost: Callable[[R], int],
    *,
    budget: int,
    count: int,
    threads: int,
) -> Iterator[R]:
    """``map`` in threads, in order, with results waiting that cost no more than memory can hold.

    What an item costs is known only when it is done. So no more than ``threads`` items are under
    way, and a load that ends begins the next one itself, without waiting for the caller. It does
    so while the results that wait cost less than ``budget`` and fewer than ``count`` items wait or
    are under way. However the costs change from item to item, what waits costs less than
    ``budget`` and ``threads`` of the dearest items together.
    """
    lock = Lock()  # held for what follows, and whenever an item begins or ends
    source = iter(items)
    waiting: deque[Future[R]] = deque()
    running = held = 0
    ended = False

    def fill() -> None:
        nonlocal running, ended
        while not ended and running < threads and len(waiting) < count and held < budget:
            try:
                waiting.append(pool.submit(work, next(source)))
                running += 1
            except StopIteration:
                ended = True
            except BaseException as error:  # for the caller, after the items that came before
                ended = True
                waiting.append(Future())
                waiting[-1].set_exception(error)

    def work(item: T) -> R:
        nonlocal running, held, ended
        try:
            result = function(item)
        except BaseException:
            with lock:
                running, ended = running - 1, True
            raise
        with lock:
            running, held = running - 1, held + cost(result)
            fill()
        return result

    try:
        while True:
            with lock:
                fill()
                if not waiting:
                    return
                first = waiting.popleft()
            result = first.result()
            with lock:
                held -= cost(result)
            yield result
            del first, result  # or the last one stays in memory while the next is awaited
    finally:
        with lock:
            ended = True
        for future in waiting:
            future.cancel()
        waiting.clear()  # ``fill`` and ``work`` know each other: only the collector ends them


def batches_by_size(
    sizes: Sequence[tuple[int, int]], batch_size: int, batch_pixels: int
) -> Iterator[list[int]]:
    """Positions of ``sizes`` (height, width) in batches of similar ones.

    A batch has at most ``batch_size`` pictures and, unless it is a single one, at most
    ``batch_pixels`` pixels.
    """
    batch: list[int] = []
    pixels = 0
    for position in sorted(range(len(sizes)), key=lambda position: sizes[position]):
        height, width = sizes[position]
        if batch and (len(batch) == batch_size or pixels + height * width > batch_pixels):
            yield batch
            batch, pixels = [], 0
        batch.append(position)
        pixels += height * width
    if batch:
        yield batch


def one_by_one_on_error(
    function: Callable[[list[T]], Sequence[R]], batch: list[T]
) -> list[R | Exception]:
    """``function(batch)``; if it raises, each item alone, with its exception where it fails again.

    One picture that the codec cannot do must not take its neighbours with it. Where memory runs
    out, the batch is halved instead, and halved again, down to single items.
    """
    try:
        return list(function(batch))
    except Exception as error:
        short = is_out_of_memory(error)
        if len(batch) == 1:
            return [error.with_traceback(None)]  # its frames would hold the memory
    return in_parts(function, batch, short)


def in_parts(
    function: Callable[[list[T]], Sequence[R]], batch: list[T], short: bool
) -> list[R | Exception]:
    """What to do with a batch that failed: halves if memory was ``short``, else one by one."""
    if short:
        release_memory()
    step = max(1, len(batch) // 2) if short else 1
    parts = [batch[at : at + step] for at in range(0, len(batch), step)]
    return [result for part in parts for result in one_by_one_on_error(function, part)]


def layers_worth_storing(encoded: EncodedImage, limit: int, alpha_bytes: int, source: int) -> int:
    """The most layers, up to ``limit``, whose stream is not larger than the picture's file.

    Never fewer than one: with none there would be no picture.
    """
    kept, total = 1, len(encoded.header) + alpha_bytes
    for number, layer in enumerate(encoded.layers[:limit], start=1):
        total += len(layer)
        if total <= source:
            kept = number
    return kept


def describe(error: BaseException) -> str:
    """An exception as a reason: its general part first, the particulars after a colon."""
    text = " ".join(str(error).split())[:500]
    name = type(error).__name__
    return text if text and name in _SPEAKING else f"{name}: {text}" if text else name


_SPEAKING = {"BrokenImageError", "UnsupportedImageError", "ShardError"}


def check_codec_result(codec: Codec, encoded: EncodedImage, height: int, width: int) -> None:
    """A stream that claims another size than its picture would be found out years too late."""
    if (encoded.height, encoded.width) != (height, width):
        raise ValueError(
            f"{codec.name} encoded {width}x{height} as {encoded.width}x{encoded.height}"
        )
