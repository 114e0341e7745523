"""The process that holds a node's model between tasks: `python -m clients.worker`.

`worker_calls` starts it with a socket that listens already. It says hello to every caller at once,
also while it trains, and carries out one task at a time, in the order in which they came. It ends
by itself: with its node, when nobody has asked for a while, or when another has its place.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import time
import traceback
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from socket import socket
from threading import Thread
from typing import Any

from clients.worker_frames import (
    FrameError,
    Gone,
    Hello,
    Order,
    header_of,
    read_header,
    receive,
    send,
)
from clients.worker_home import Home, Node, is_ours
from fedmoe.errors import FedMoEError
from fedmoe.system.digests import code_digest

TICK_SECONDS = 0.5
"""Between two looks at whether its node still runs."""
FIRST_SECONDS = 60.0
"""For its first caller: it calls at once, but on a busy machine threads, too, take their time."""
STALL_SECONDS = 60.0
"""A caller that stays silent for so long in the middle of a frame is given up."""

Reply = tuple[dict[str, Any], "bytes | memoryview"]


@dataclass(frozen=True, eq=False)
class Job:
    """A task on its way through the worker."""

    order: Order
    buffer: memoryview
    reply: Future[Reply]


class Worker:
    """Threads talk to callers; the main thread alone computes: torch counts threads by thread."""

    def __init__(self, listener: socket, seat: int, node: Node, idle_seconds: float) -> None:
        """`seat` is the number of the file that `listener` is bound to."""
        self.listener, self.seat, self.node = listener, seat, node
        self.idle_seconds = idle_seconds
        self.home = Home()
        self.code = code_digest(Path(__file__).parent)
        self.jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self.rested = time.monotonic() + FIRST_SECONDS
        """When it last had something to do, or will have had for the first time."""
        self.key: tuple[str, str, list[str]] | None = None
        """What its model was loaded for."""
        self.loads = 0
        self.callers: list[socket] = []
        """Who has called and has not hung up."""

    def run(self) -> None:
        """Work until there is nobody left to work for; does not return."""
        for life in (self._accept, self._watch):
            Thread(target=life, daemon=True).start()
        while self._wanted():
            self._turn()
        self._end()

    def _wanted(self) -> bool:
        in_place = self.home.seat(self.node.name) == self.seat
        # What has come before another took its place is still its own.
        idle = time.monotonic() - self.rested > self.idle_seconds
        return bool(self.callers) or not self.jobs.empty() or (in_place and not idle)

    def _turn(self) -> None:
        """Carry out a task, or wait a moment for one."""
        try:
            job = self.jobs.get(timeout=TICK_SECONDS)
        except queue.Empty:
            return
        job.reply.set_result(self._answer(job.order, job.buffer))
        self.rested = time.monotonic()

    def _answer(self, order: Order, buffer: memoryview) -> Reply:
        try:
            return self._carry_out(order, buffer)
        except FedMoEError as error:
            return _reason(error)
        except Exception as error:
            traceback.print_exc()
            said = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
            return {"kind": "error", "error": said}, b""

    def _carry_out(self, order: Order, buffer: memoryview) -> Reply:
        # Here, because it takes seconds, and a caller should hear at once that somebody is there.
        from clients.resident import carry_out, resident

        if (key := (order.experiment, order.overrides, order.allow)) != self.key:
            resident.cache_clear()  # else the old model would stay until the new one is there
            self.key = key
        before = resident.cache_info().misses
        try:
            update = carry_out(order, buffer)
        finally:
            self.loads += resident.cache_info().misses - before
        return {"kind": "done", "scalars": update.scalars, "crc32": update.crc32}, update.buffer

    def _accept(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            self.callers.append(connection)  # not in its thread, which may come to run too late
            try:
                Thread(target=self._serve, args=(connection,), daemon=True).start()
            except RuntimeError:  # no thread to be had: it may call again
                self.callers.remove(connection)
                connection.close()

    def _serve(self, connection: socket) -> None:
        """Hear one caller out; whatever it sends, nothing but its own connection suffers."""
        connection.settimeout(STALL_SECONDS)
        try:
            self._hear_out(connection)
        finally:
            self.rested = time.monotonic()
            self.callers.remove(connection)

    def _hear_out(self, connection: socket) -> None:
        with connection:
            if not is_ours(connection):
                return
            try:
                send(connection, header_of(Hello(self.code, os.getpid(), self.loads)))
                send(connection, *self._reply(connection))
            except (Gone, TimeoutError):
                pass  # it only wanted to know who is there, or has died; its task is done again

    def _reply(self, connection: socket) -> Reply:
        try:
            header, buffer = receive(connection)
            job = Job(read_header(header, Order), buffer, Future())
        except FrameError as error:
            return _reason(error)
        self.jobs.put(job)
        return job.reply.result()

    def _watch(self) -> None:
        while self.node.alive():
            time.sleep(TICK_SECONDS)
        self._end()

    def _end(self) -> None:
        """Leave nothing behind but a log, if there is something in it."""
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            with self.home.locked():  # between a look and a removal nobody else must take the place
                self.home.leave(self.node.name, self.seat)
        finally:
            os._exit(0)  # the other threads wait for callers without end


def _reason(error: FedMoEError) -> Reply:
    return {"kind": "reason", "reason": str(error), "code": getattr(error, "code", None)}, b""


def main(arguments: list[str]) -> None:
    """Serve on the socket that was inherited under a number."""
    fd, seat, pid, started = map(int, arguments[:4])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the node's to handle
    Worker(socket(fileno=fd), seat, Node(pid, started), float(arguments[4])).run()


if __name__ == "__main__":
    main(sys.argv[1:])
