"""A deployment's scripts as processes: started, found in /proc, killed, and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from fedmoe.errors import FedMoEError

Role = Literal["server app", "client app", "worker", "SuperLink", "SuperNode"]
ROLES: tuple[Role, ...] = get_args(Role)
COMMANDS: dict[Role, str] = {
    "server app": "flwr-serverapp",
    "client app": "flwr-clientapp",
    "SuperLink": "flower-superlink",
    "SuperNode": "flower-supernode",
}
RESTART_SECONDS = 2.0
"""As the services' RestartSec."""
GONE = (ProcessLookupError, PermissionError, FileNotFoundError)


@dataclass
class Service:
    """One of a deployment's two kinds of service: the server's, or a client's."""

    script: Path
    state: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, as systemd would; its output is added to a log in its state."""
        self.state.mkdir(parents=True, exist_ok=True)
        with (self.state / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.script],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def died(self) -> bool:
        """Whether its main process has ended by itself, or by a kill."""
        return self.process is not None and self.process.poll() is not None

    def environment(self) -> dict[str, str]:
        """This process's, with Flower's commands from where this Python is."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        return os.environ | {"FEDMOE_STATE": str(self.state), "PATH": path}

    def pids(self, role: Role | None = None) -> list[int]:
        """The numbers of its processes; of all, or of those in one role."""
        found = {pid: words for pid, words in _processes() if self._is_mine(pid)}
        if role is None:
            return sorted(found)
        names = {pid: {Path(word).name for word in words[:3]} for pid, words in found.items()}
        if role == "worker":
            # A client's process that is none of Flower's commands.
            known = {*COMMANDS.values(), "flower-superexec", "flwr", "supernode.sh"}
            return sorted(pid for pid, name in names.items() if not name & known)
        return sorted(pid for pid, name in names.items() if COMMANDS[role] in name)

    def restart(self) -> None:
        """What systemd does when its main process has died: end what is left, wait, start."""
        self.stop(signal.SIGKILL)
        time.sleep(RESTART_SECONDS)
        self.start()

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End all of its processes, the stubborn ones for sure."""
        for how, seconds in ((number, 5.0), (signal.SIGKILL, 5.0)):
            end = time.monotonic() + seconds
            for pid in self.pids():
                with suppress(*GONE):
                    os.kill(pid, how)
            while self.pids() and time.monotonic() < end:
                time.sleep(0.1)
        if self.process is not None:
            self.process.wait(timeout=10)
            self.process = None

    def _is_mine(self, pid: int) -> bool:
        """Flower's home is in the environment of every process that a script leads to."""
        mark = f"FLWR_HOME={self.state}/flwr\0".encode()
        with suppress(*GONE):
            return mark in Path(f"/proc/{pid}/environ").read_bytes() + b"\0"
        return False


@dataclass
class Deployment:
    """A folder of `fedmoe deploy init`, and a state of its own for one run."""

    folder: Path
    state: Path
    server: Service = field(init=False)
    clients: dict[str, Service] = field(init=False)
    submitted: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.folder, self.state = self.folder.absolute(), self.state.absolute()
        if not (self.folder / "server" / "superlink.sh").exists():
            raise FedMoEError(f"{self.folder} is no folder of `fedmoe deploy init`")
        if (self.folder / "server" / "nginx.conf").exists():
            raise FedMoEError(
                f"{self.folder} is for several machines; make one with --server 127.0.0.1"
            )
        self.server = Service(self.folder / "server" / "superlink.sh", self.state / "server")
        self.clients = {
            path.name: Service(path / "supernode.sh", self.state / path.name)
            for path in sorted((self.folder / "clients").iterdir())
        }

    @property
    def runs(self) -> Path:
        """Where runs are written."""
        return self.server.state / "work" / "runs"

    def start(self, seconds: float) -> None:
        """Start the server, tell it the clients' keys, start the clients."""
        self.server.start()
        end = time.monotonic() + seconds
        keys = sorted((self.folder / "server" / "nodes").glob("*.pub"))
        while True:
            done = self._flwr("supernode", "list", "fleet")
            if done.returncode == 0:
                break
            if self.server.died:
                log = (self.server.state / "log").read_text(errors="replace")[-2000:]
                raise FedMoEError(f"the SuperLink ended as it started:\n{log}")
            if time.monotonic() > end:
                raise FedMoEError(f"the SuperLink does not answer: {done.stdout}{done.stderr}")
            time.sleep(1.0)
        for key in keys:
            done = self._flwr("supernode", "register", str(key), "fleet", "--name", key.stem)
            if done.returncode:
                raise FedMoEError(f"{key} was not taken: {done.stdout}{done.stderr}")
        for client in self.clients.values():
            client.start()

    def submit(self) -> None:
        """Submit the run, as the README says; again after a crash."""
        self.withdraw()
        with (self.state / "submitted.log").open("ab") as log:
            self.submitted = subprocess.Popen(
                [self.folder / "server" / "flwr.sh", "run"],
                env=self.server.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def withdraw(self) -> None:
        """End the command that follows the run's log; the run does not notice."""
        if self.submitted is not None:
            self.submitted.kill()
            self.submitted.wait(timeout=10)
            self.submitted = None

    def stop(self) -> None:
        """End everything."""
        self.withdraw()
        for service in (*self.clients.values(), self.server):
            service.stop()

    def _flwr(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.folder / "server" / "flwr.sh", *words],
            env=self.server.environment(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


def _processes() -> list[tuple[int, list[str]]]:
    """Every process that runs here, with its command line's words; not one that has ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(*GONE):
            words = (path / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if any(words):
                found.append((int(path.name), words))
    return found
