"""The order of shards in a stage, and how long each stage took."""

import threading
import time

from pipeline.running.stages import StageClock, Turn


def test_whoever_waited_longest_is_next() -> None:
    turn, order = Turn(), []

    def take(number: int) -> None:
        with turn:
            order.append(number)

    with turn:
        threads = []
        for number in range(8):
            threads.append(threading.Thread(target=take, args=(number,)))
            threads[-1].start()
            while len(turn._waiting) <= number:  # it has come, and waits
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert order == list(range(8))
    with turn:  # and it is free again
        pass


def test_a_turn_ends_with_an_error() -> None:
    turn = Turn()
    try:
        with turn:
            raise ValueError
    except ValueError:
        pass
    with turn:
        pass


def test_a_shards_clock_counts_for_its_worker_too() -> None:
    worker = StageClock()
    for _ in range(2):
        shard = StageClock(worker)
        shard.add("device", 1.5)
        shard.add("coder", 0.25)
        assert shard.seconds() == {"device": 1.5, "coder": 0.25}
    assert worker.seconds() == {"device": 3.0, "coder": 0.5}
    with worker.timed("decode", threads=4):
        time.sleep(0.02)
    assert 0 < worker.seconds()["decode"] < 0.02
