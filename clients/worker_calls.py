"""Calls to the process that holds the model: find the node's worker, or start it, and ask it."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from socket import socket
from subprocess import Popen
from threading import Thread
from typing import TYPE_CHECKING, Any, cast

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
from clients.worker_home import Home, node_here
from fedmoe.errors import FedMoEError, WireError
from fedmoe.system.control_groups import oom_events, oom_kills
from fedmoe.system.digests import code_digest
from fedmoe.system.processes import Process, ending

if TYPE_CHECKING:
    # It imports torch, which takes seconds, and most messages only pass a task on.
    from fedmoe.messages.records import Message

LOG = logging.getLogger(__name__)
BUNDLE = Path(__file__).parents[1]
"""The folder of the `clients/` that this process runs, and its worker must run, too."""
IDLE_SECONDS = 1800.0
"""Seconds that a worker keeps an unused model: several rounds of other clients."""
HELLO_SECONDS = 60.0
"""Time for a worker's greeting: on a busy machine Python takes seconds to start."""
END_SECONDS = 5.0
"""Time for the kernel to clear away a killed process, more than it needs unless that is huge."""
MOST_DEATHS = 2
"""Workers that one task may cost, beside those that were killed for memory with a larger k."""
UNKNOWN, SILENT = "an unknown cause (another process had started it)", "falling silent"
MAYBE_KILLED = {signal.SIGKILL.name, UNKNOWN, SILENT}
"""The end of a worker that the kernel has killed, as its caller may see it."""
KILLED = (
    "a worker of this node was killed for want of memory (%s); its task is done again with %d "
    "expert(s) fewer"
)


class WorkerError(Exception):
    """An exception of the worker that the user cannot mend, with its traceback."""


@dataclass(frozen=True)
class Packed:
    """The fields of a `fedmoe.messages.codec.Message`, for a process without torch."""

    scalars: str
    buffer: memoryview
    checksum: int | None


def answer(order: Order, buffer: bytes, idle_seconds: float, task_seconds: float) -> Message:
    """Return the packed update of the task in `order` and `buffer`, within `task_seconds`.

    On a SuperNode its worker makes it, which is started if need be; elsewhere, or where
    `idle_seconds` is 0, this process does.

    Raises:
        FedMoEError: the task is refused, or ended every worker that tried it.
        WorkerError: any other exception of the worker.
    """
    node = node_here() if idle_seconds else None
    if node is None:
        from clients.resident import carry_out

        return carry_out(order, memoryview(buffer))
    return cast("Message", NodeWorker(node, idle_seconds).ask(order, buffer, task_seconds))


def idle_seconds_of(node_config: Mapping[str, Any]) -> float:
    """Read how long a node's worker may idle: `worker_idle_seconds` of the node's config."""
    named = node_config.get("worker_idle_seconds", IDLE_SECONDS)
    try:
        if (seconds := float(named)) >= 0:
            return seconds
    except (TypeError, ValueError):
        pass
    raise FedMoEError(
        f"node config: worker_idle_seconds is {named!r}; expected seconds, or 0 for no worker"
    )


@dataclass(frozen=True)
class Found:
    """A connection to a worker that runs our code."""

    connection: socket
    hello: Hello
    process: Popen[bytes] | None
    """None if another process started it, which alone can see how it ends."""


@dataclass(frozen=True)
class NodeWorker:
    """The only worker of a node, as its callers see it; it is started when it is called."""

    node: Process
    idle_seconds: float = IDLE_SECONDS
    bundle: Path = BUNDLE

    def ask(self, order: Order, buffer: bytes, task_seconds: float) -> Packed:
        """Return the packed update of a task; see `answer`.

        A task whose worker dies is given to a new one: with one expert fewer if the kernel has
        killed the worker for memory, which would happen again; else unchanged, so that the update
        is bitwise identical.
        """
        with Home() as home:
            deaths, how = 0, ""
            while deaths < MOST_DEATHS:
                found = self._reach(home)
                events = oom_events(found.hello.pid)
                before = oom_kills(events)
                with found.connection:
                    try:
                        return _ask(found, order, buffer, task_seconds)
                    except Gone:
                        how = _how(found.process)
                killed = oom_kills(events) > before and how in MAYBE_KILLED
                if killed and order.fewer + 1 < _top_k(order):
                    order = replace(order, fewer=order.fewer + 1)
                    LOG.warning(KILLED, events, order.fewer)
                else:
                    deaths += 1
            raise FedMoEError(
                f"the task ended its worker {MOST_DEATHS} times, the last by {how}; is there "
                f"enough memory? The worker's log is {home.log_path(self.node.name)}"
            )

    def look(self) -> Hello | None:
        """Return a running worker's greeting; None if there is none, and none is started."""
        with Home() as home:
            connection = home.connect(self.node.name, HELLO_SECONDS)
            if connection is None:
                return None
            with connection:
                return _hello(connection)

    def _reach(self, home: Home) -> Found:
        """Connect to the worker; replace one that is missing, silent or runs other code."""
        name, process, fault = self.node.name, None, ""
        code = code_digest(self.bundle / "clients")
        for _ in range(MOST_DEATHS):
            with home.locked():
                connection = home.connect(name, HELLO_SECONDS)
                if connection is None:
                    process = self._start(home)
                    connection = home.connect(name, HELLO_SECONDS)
                seat = home.seat(name)
            hello = connection and _hello(connection)
            if connection and hello and hello.code == code:
                mine = process if process and process.pid == hello.pid else None
                return Found(connection, hello, mine)
            fault = f"runs code {hello.code}, not {code}" if hello else f"ended by {_how(process)}"
            if connection:
                connection.close()
            with home.locked():
                # It finishes what it has begun and ends, once its place is taken.
                home.leave(name, seat)
        raise FedMoEError(
            f"the worker that should hold the model {fault}; its log is {home.log_path(name)}"
        )

    def _start(self, home: Home) -> Popen[bytes]:
        """Start a worker; calls can be made as soon as this returns, and wait for its greeting."""
        home.sweep()
        listener = home.listen(self.node.name)
        # -P, and not the working folder: a stray `clients/` there would run in place of ours.
        command = [sys.executable, "-P", "-m", "clients.worker", listener.fileno()]
        command += [home.seat(self.node.name), self.node.pid, self.node.started, self.idle_seconds]
        paths = [str(self.bundle), *filter(None, [os.environ.get("PYTHONPATH")])]
        with listener, home.log(self.node.name) as log:
            process = Popen(
                list(map(str, command)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )
        # It usually outlives this process; if it does not, its exit code must be collected.
        Thread(target=process.wait, daemon=True).start()
        return process


def _ask(found: Found, order: Order, buffer: bytes, task_seconds: float) -> Packed:
    send(found.connection, header_of(order), memoryview(buffer))
    found.connection.settimeout(task_seconds)
    try:
        header, update = receive(found.connection)
    except TimeoutError:
        # Nobody waits for the update any more, and the next task must not wait behind it.
        with suppress(ProcessLookupError):
            os.kill(found.hello.pid, signal.SIGKILL)
        raise FedMoEError(f"no update within {task_seconds:g} s; its worker was killed") from None
    match header:
        case {"kind": "done", "scalars": str(scalars), "checksum": int() | None as checksum}:
            return Packed(scalars, update, checksum)
        case {"kind": "reason", "reason": str(reason), "code": str(code)}:
            raise WireError(reason, code)
        case {"kind": "reason", "reason": str(reason)}:
            raise FedMoEError(reason)
        case {"kind": "error", "error": str(error)}:
            raise WorkerError(error)
    raise FrameError(f"the worker answered with a frame of kind {header.get('kind')!r:.80}")


def _hello(connection: socket) -> Hello | None:
    """Read the greeting of the worker at the other end; None if it dies or stays silent."""
    try:
        return read_header(receive(connection)[0], Hello)
    except (Gone, TimeoutError, FrameError):
        return None


def _top_k(order: Order) -> int:
    """Return the experts that a task asks for; 1 if unknown: then none can be left out."""
    try:
        return int(json.loads(order.scalars)["top_k"])
    except (ValueError, TypeError, KeyError):
        return 1


def _how(process: Popen[bytes] | None) -> str:
    """Say how a worker ended: `SIGKILL`, or `exit code 1`."""
    try:
        return ending(process.wait(END_SECONDS)) if process else UNKNOWN
    except subprocess.TimeoutExpired:
        return SILENT
