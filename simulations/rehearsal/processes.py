"""A script of a deployment as processes: started, found, killed, and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import psutil

Role = Literal["server app", "client app", "worker", "SuperLink", "SuperNode"]
ROLES: tuple[Role, ...] = get_args(Role)
COMMANDS: dict[str, Role] = {
    "flwr-serverapp": "server app",
    "flwr-clientapp": "client app",
    "flower-superlink": "SuperLink",
    "flower-supernode": "SuperNode",
}
HELPERS = {"flower-superexec", "flwr", "supernode.sh"}
RESTART_SECONDS = 2.0
"""As the services' RestartSec."""


@dataclass
class Service:
    """One of a deployment's two kinds of service: the server's, or a client's."""

    script: Path
    state: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, as systemd would; its output is added to a log in its state."""
        self.process = self.run_with_log(self.state / "log")

    def run_with_log(self, path: Path, *words: str) -> subprocess.Popen[bytes]:
        """Start the script with arguments, its output added to a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as log:
            return subprocess.Popen(
                [self.script, *words],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def died(self) -> bool:
        """Return whether its main process has ended by itself, or by a kill."""
        return self.process is not None and self.process.poll() is not None

    def environment(self) -> dict[str, str]:
        """Return this process's, with Flower's commands from where this Python is."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        return os.environ | {"FEDMOE_STATE": str(self.state), "PATH": path}

    def pids(self, role: Role | None = None) -> list[int]:
        """Return the numbers of all its processes, or of those in one role.

        Flower's home is in the environment of every process that a script leads to.
        """
        found, home = [], f"{self.state}/flwr"
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                mine = process.environ().get("FLWR_HOME") == home
                if mine and role in (None, _role(process.cmdline()[:3])):
                    found.append(process.pid)
        return sorted(found)

    def restart(self) -> None:
        """Do what systemd does when its main process has died: end what is left, wait, start."""
        self.stop(signal.SIGKILL)
        time.sleep(RESTART_SECONDS)
        self.start()

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End all of its processes, the stubborn ones for sure."""
        for how in (number, *[signal.SIGKILL] * 5):
            left = []
            for pid in self.pids():
                with suppress(psutil.Error):
                    left.append(psutil.Process(pid))
                    left[-1].send_signal(how)
            psutil.wait_procs(left, timeout=5)
            if not left and how == signal.SIGKILL:
                break
        if self.process is not None:
            self.process.wait(timeout=10)
            self.process = None


def _role(words: list[str]) -> Role | None:
    """Return the role of a process by its command line; None for Flower's helpers."""
    names = {Path(word).name for word in words}
    for name, role in COMMANDS.items():
        if name in names:
            return role
    return None if names & HELPERS or not names else "worker"
