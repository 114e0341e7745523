"""Work that is done beside the caller's, in one thread and in the order in which it was given."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Background:
    """Does jobs one after another; what follows a job that failed is left undone.

    >>> jobs, done = Background(), []
    >>> jobs.add(lambda: done.append(1))
    >>> jobs.wait()
    >>> done
    [1]
    """

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1)
        self.open: list[Future[None]] = []
        self.failed = False

    def add(self, job: Callable[[], Any]) -> None:
        """Let a job be done after all that were added before."""
        self.open.append(self.pool.submit(self._do, job))

    def wait(self) -> None:
        """Wait for all jobs, and raise what one of them raised."""
        while self.open:
            self.open.pop(0).result()

    def close(self) -> None:
        """Wait for all jobs and end the thread; errors stay unsaid."""
        self.pool.shutdown()

    def _do(self, job: Callable[[], Any]) -> None:
        if self.failed:
            return
        self.failed = True
        job()
        self.failed = False
