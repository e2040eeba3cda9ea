"""Threads that read ahead and work behind: order, bounds, errors, and ends in the middle."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from repmode_cl.utils.background import read_ahead, working_behind


def test_what_is_read_ahead_comes_in_order_and_is_bounded() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number

    taken = []
    with read_ahead(items(), 2) as ready:
        for item in ready:
            time.sleep(0.002)
            assert len(made) <= item + 3, "two are ahead, and this one"
            taken.append(item)
    assert taken == list(range(20))


def test_an_error_of_reading_comes_in_its_place_and_a_loop_may_end_early() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("no disk")

    with read_ahead(items()) as ready:
        assert next(ready) == 1
        with pytest.raises(OSError, match="no disk"):
            next(ready)
    before = threading.active_count()
    with read_ahead(iter(range(10**9))) as ready:
        assert next(ready) == 0
    assert threading.active_count() == before, "the thread has ended"


def test_work_behind_is_done_in_order_and_its_error_is_raised() -> None:
    done: list[int] = []
    with working_behind(done.append) as behind:
        for number in range(50):
            behind.put(number)
    assert done == list(range(50))

    def fails(number: int) -> None:
        if number == 3:
            raise ValueError("three")
        done.append(-number)

    def put_all() -> None:
        with working_behind(fails, 1) as behind:
            for number in range(1, 1000):
                behind.put(number)

    with pytest.raises(ValueError, match="three"):
        put_all()
    assert done[50:] == [-1, -2], "nothing after the error"


def test_an_interruption_finishes_what_is_at_work_and_drops_the_rest() -> None:
    begun, go_on, done = threading.Event(), threading.Event(), list[int]()

    def work(number: int) -> None:
        begun.set()
        assert go_on.wait(5)
        done.append(number)

    def interrupted() -> None:
        with working_behind(work, 3) as behind:
            for number in range(3):
                behind.put(number)
            assert begun.wait(5)
            threading.Timer(0.05, go_on.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == [0]


def test_what_is_put_can_be_waited_for_and_what_is_dropped_is_handed_back() -> None:
    begun, go_on, done, dropped = threading.Event(), threading.Event(), list[int](), list[int]()

    def work(number: int) -> None:
        if number == 2:
            begun.set()
            assert go_on.wait(5)
        done.append(number)

    def interrupted() -> None:
        with working_behind(work, 3, dropped.append) as behind:
            behind.put(0)
            behind.put(1)
            behind.wait()
            assert done == [0, 1]
            assert not behind.stopping
            for number in (2, 3, 4):
                behind.put(number)
            assert begun.wait(5)
            threading.Timer(0.05, go_on.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (done, dropped) == ([0, 1, 2], [3, 4])
