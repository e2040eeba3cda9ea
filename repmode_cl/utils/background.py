"""Threads that read ahead of a loop and work behind it, each a bounded number of items away, with a clean end."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

__all__ = ["read_ahead", "Behind", "working_behind"]

T = TypeVar("T")

#: Seconds after which a thread that waits looks whether it should end.
_LOOK = 0.1


class _End:
    """End of what is read, or the error that ended it."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


@contextmanager
def read_ahead(items: Iterable[T], ahead: int = 1) -> Iterator[Iterator[T]]:
    """Yield an iterator over `items`, which a thread makes ahead of it; both end with the block.

    Parameters
    ----------
    items
        Read by the thread only.
    ahead
        Most items that are made or being made and not yet taken.

    Raises
    ------
    BaseException
        Whatever making an item raises, where that item would come.
    """
    ready: queue.SimpleQueue[T | _End] = queue.SimpleQueue()
    places, stopped = threading.Semaphore(ahead), threading.Event()

    def run() -> None:
        source, error = iter(items), None
        try:
            while not stopped.is_set():
                if places.acquire(timeout=_LOOK):
                    ready.put(next(source))
        except StopIteration:
            pass
        except BaseException as raised:
            error = raised
        ready.put(_End(error))

    def taken() -> Iterator[T]:
        while True:
            item = ready.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            places.release()
            yield item

    thread = threading.Thread(target=run, name="read ahead", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        stopped.set()
        thread.join()


class Behind(Generic[T]):
    """A thread that works on items one after the other, in the order in which they are put.

    Parameters
    ----------
    work
        Called with each item, in the thread.
    behind
        Most items that are put and not yet done.
    drop
        Called in the thread with each item that is not worked on any more, after an error or `stop`.
    """

    def __init__(
        self, work: Callable[[T], None], behind: int = 1, drop: Callable[[T], None] | None = None
    ) -> None:
        self._work, self._drop, self._most = work, drop, behind
        self._queue: queue.SimpleQueue[T | _End] = queue.SimpleQueue()
        self._places = threading.Semaphore(behind)
        self._error: BaseException | None = None
        self._dropped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="work behind", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            item = self._queue.get()
            if isinstance(item, _End):
                break
            try:
                if not self._dropped.is_set():
                    self._work(item)
                elif self._drop is not None:
                    self._drop(item)
            except BaseException as error:
                self._error = error
                self._dropped.set()
            # Not kept while waiting for the next.
            del item
            self._places.release()

    @property
    def stopping(self) -> bool:
        """True once the item at work is not wanted any more."""
        return self._dropped.is_set()

    def put(self, item: T) -> None:
        """Hand over an item, waiting for a place.

        Raises
        ------
        BaseException
            What an earlier item raised.
        """
        self._places.acquire()
        if self._error is not None:
            self._places.release()
            raise self._error
        self._queue.put(item)

    def wait(self) -> None:
        """Wait until all items are done; more can be put then.

        Raises
        ------
        BaseException
            What an item raised.
        """
        for _ in range(self._most):
            self._places.acquire()
        self._places.release(self._most)
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Wait until all items are done, and end the thread.

        Raises
        ------
        BaseException
            What an item raised.
        """
        self._queue.put(_End(None))
        self._thread.join()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Wait for the item that is worked on, and drop the others."""
        self._dropped.set()
        self._queue.put(_End(None))
        self._thread.join()


@contextmanager
def working_behind(
    work: Callable[[T], None], behind: int = 1, drop: Callable[[T], None] | None = None
) -> Iterator[Behind[T]]:
    """Yield a `Behind`; at the end of the block all its items are done, after an error only the one at work."""
    worker = Behind(work, behind, drop)
    try:
        yield worker
        worker.finish()
    except BaseException:
        worker.stop()
        raise
