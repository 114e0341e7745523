"""The process that holds a node's model between tasks: `python -m clients.worker`.

`worker_calls` starts it with a socket that listens already. It greets every caller at once, even
while it trains, and carries out one task at a time, in the order of arrival. It ends by itself:
with its node, when nobody has called for a while, or when another worker has its place.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import time
import traceback
from concurrent.futures import Future
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
from clients.worker_home import Home, is_ours
from fedmoe.errors import FedMoEError
from fedmoe.system.digests import code_digest
from fedmoe.system.processes import Process

TICK_SECONDS = 0.5
"""Between two looks at whether its node still runs."""
FIRST_SECONDS = 60.0
"""For its first caller: it calls at once, but on a busy machine threads, too, take their time."""
STALL_SECONDS = 60.0
"""A caller that stays silent for so long in the middle of a frame is given up."""

Reply = tuple[dict[str, Any], "bytes | memoryview"]


class Worker:
    """Threads talk to callers; only the main thread computes: torch sets threads by thread."""

    def __init__(self, listener: socket, seat: int, node: Process, idle_seconds: float) -> None:
        """`seat` is the number of the file that `listener` is bound to."""
        self.listener, self.seat, self.node = listener, seat, node
        self.idle_seconds = idle_seconds
        self.home = Home()
        self.code = code_digest(Path(__file__).parent)
        self.waiting: queue.SimpleQueue[tuple[Order, memoryview, Future[Reply]]]
        self.waiting = queue.SimpleQueue()
        self.rested = time.monotonic() + FIRST_SECONDS
        """When it last had something to do, or will have had for the first time."""
        self.key: tuple[str, str, list[str], str] | None = None
        """Experiment, overrides, allowed modules and rows that its model was loaded for."""
        self.loads = 0
        self.callers: list[socket] = []
        """Connections that are still open."""

    def run(self) -> None:
        """Work as long as anybody may call; never return."""
        for life in (self._accept, self._watch):
            Thread(target=life, daemon=True).start()
        while self._wanted():
            try:
                order, buffer, reply = self.waiting.get(timeout=TICK_SECONDS)
            except queue.Empty:
                continue
            reply.set_result(self._answer(order, buffer))
            self.rested = time.monotonic()
        self._end()

    def _wanted(self) -> bool:
        in_place = self.home.seat(self.node.name) == self.seat
        # Tasks that came before another worker took its place are still its own.
        idle = time.monotonic() - self.rested > self.idle_seconds
        return bool(self.callers) or not self.waiting.empty() or (in_place and not idle)

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
        # Here, because it takes seconds, and a caller should be greeted at once.
        from clients.resident import carry_out, resident

        if (key := (order.experiment, order.overrides, order.allow, order.data)) != self.key:
            resident.cache_clear()  # else the old model would stay until the new one is loaded
            self.key = key
        before = resident.cache_info().misses
        try:
            update = carry_out(order, buffer)
        finally:
            self.loads += resident.cache_info().misses - before
        header = {"kind": "done", "scalars": update.scalars, "checksum": update.checksum}
        return header, update.buffer

    def _accept(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            self.callers.append(connection)  # not in its thread, which may come to run too late
            try:
                Thread(target=self._serve, args=(connection,), daemon=True).start()
            except RuntimeError:  # no thread is free: it may call again
                self.callers.remove(connection)
                connection.close()

    def _serve(self, connection: socket) -> None:
        """Talk to one caller; whatever it sends, only its own connection suffers."""
        try:
            with connection:
                connection.settimeout(STALL_SECONDS)
                if is_ours(connection):
                    send(connection, header_of(Hello(self.code, os.getpid(), self.loads)))
                    send(connection, *self._reply(connection))
        except (Gone, TimeoutError):
            pass  # it only wanted to know who is there, or has died; its task is done again
        finally:
            self.rested = time.monotonic()
            self.callers.remove(connection)

    def _reply(self, connection: socket) -> Reply:
        try:
            header, buffer = receive(connection)
            order, reply = read_header(header, Order), Future[Reply]()
        except FrameError as error:
            return _reason(error)
        self.waiting.put((order, buffer, reply))
        return reply.result()

    def _watch(self) -> None:
        while self.node.alive():
            time.sleep(TICK_SECONDS)
        self._end()

    def _end(self) -> None:
        """Leave nothing behind but a log that is not empty."""
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            with self.home.locked():  # between a look and a removal nobody may take the place
                self.home.leave(self.node.name, self.seat)
        finally:
            os._exit(0)  # the other threads wait for callers without end


def _reason(error: FedMoEError) -> Reply:
    return {"kind": "reason", "reason": str(error), "code": getattr(error, "code", None)}, b""


def main(arguments: list[str]) -> None:
    """Serve on the socket that was inherited under a number."""
    said = "%(asctime)s %(message)s"
    logging.basicConfig(level=logging.INFO, format=said)  # into the log of its node's worker
    fd, seat, pid, started = map(int, arguments[:4])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the node's to handle
    Worker(socket(fileno=fd), seat, Process(pid, started), float(arguments[4])).run()


if __name__ == "__main__":
    main(sys.argv[1:])
