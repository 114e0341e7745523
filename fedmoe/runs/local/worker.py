"""One worker: a process forked from the one that holds the model, which does a job at a time.

It shares the frozen weights and the data with its parent page by page, so a new one costs
milliseconds, and only what training changes is memory of its own. It dies with its parent.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from fedmoe.runs.scorer import Scorer

LOST = (EOFError, OSError)
"""What reading from or writing to a process that is gone raises."""
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Done:
    """What a job returned."""

    value: Any
    ended: float
    """By the monotonic clock, which all processes of a machine share."""


@dataclass(frozen=True)
class Raised:
    """The exception that ended a job."""

    error: Exception


@dataclass(frozen=True, eq=False)
class Worker:
    """The parent's side of a worker."""

    process: ForkProcess
    connection: Connection

    def send(self, job: Callable[[Scorer, Any], Any], argument: Any) -> bool:
        """Whether the job was taken; a dead worker takes none."""
        try:
            self.connection.send((job, argument))
        except LOST:
            return False
        return True

    def receive(self) -> Done | Raised | None:
        """What came of the job; None from a worker that died. Waits for it."""
        try:
            return self.connection.recv()
        except LOST:
            return None

    def kill(self) -> None:
        """End it, whatever it does: all it holds is its parent's too, or in files."""
        self.process.kill()
        self.bury()

    def bury(self) -> str:
        """Take leave of one that is gone or going; how it ended: `SIGKILL`, or `exit code 1`."""
        self.connection.close()
        self.process.join(1)
        self.process.kill()
        self.process.join()
        code = self.process.exitcode or 0
        self.process.close()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def fork(scorer: Scorer, others: Sequence[Worker]) -> Worker:
    """A new worker beside `others`, whose pipes it must not keep open."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    elder = [ours, *(worker.connection for worker in others)]
    # A signal between fork and `_serve` would raise KeyboardInterrupt in the new process, too.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        process = context.Process(
            target=_serve, args=(theirs, scorer, elder, os.getpid(), blocked), daemon=True
        )
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    theirs.close()
    return Worker(process, ours)


def _serve(
    connection: Connection,
    scorer: Scorer,
    elder: Sequence[Connection],
    parent: int,
    blocked: set[signal.Signals],
) -> None:
    """The life of a worker; it never returns into what the parent was doing."""
    try:
        _settle(elder, parent, blocked)
        while True:
            job, argument = connection.recv()
            connection.send(_carry_out(job, scorer, argument))
            job = argument = None
    except LOST:
        os._exit(0)  # the parent closed the pipe, or is gone
    finally:
        os._exit(1)


def _settle(elder: Sequence[Connection], parent: int, blocked: set[signal.Signals]) -> None:
    """Cut what ties a fork to its parent's other business."""
    for other in elder:
        other.close()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    # OpenMP's threads do not survive a fork: a second one would be waited for without end.
    torch.set_num_threads(1)


def _carry_out(job: Callable[[Scorer, Any], Any], scorer: Scorer, argument: Any) -> Done | Raised:
    try:
        return Done(job(scorer, argument), time.monotonic())
    except Exception as error:
        error.add_note(f"in a worker:\n{''.join(traceback.format_exception(error))}")
        return Raised(error)
