"""A folder of `fedmoe deploy init`, started and stopped on this machine, its run submitted."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from fedmoe.errors import FedMoEError
from simulations.rehearsal.processes import Service


@dataclass
class Deployment:
    """A folder of `fedmoe deploy init`, and a separate state for one run."""

    folder: Path
    state: Path
    server: Service = field(init=False)
    clients: dict[str, Service] = field(init=False)
    submitted: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.folder, self.state = self.folder.absolute(), self.state.absolute()
        server = self.folder / "server"
        if not (server / "superlink.sh").exists():
            raise FedMoEError(f"{self.folder} is no folder of `fedmoe deploy init`; make one")
        if (server / "nginx.conf").exists():
            raise FedMoEError(
                f"{self.folder} is for several machines; make one with --server 127.0.0.1"
            )
        self.server = Service(server / "superlink.sh", self.state / "server")
        self.flwr = Service(server / "flwr.sh", self.server.state)
        self.clients = {
            path.name: Service(path / "supernode.sh", self.state / path.name)
            for path in sorted((self.folder / "clients").iterdir())
        }

    def start(self, seconds: float) -> None:
        """Start the server, tell it the clients' keys, start the clients."""
        self.server.start()
        end = time.monotonic() + seconds
        while (said := self._flwr("supernode", "list", "fleet")) is not None:
            if self.server.died:
                log = (self.server.state / "log").read_text(errors="replace")[-2000:]
                raise FedMoEError(f"the SuperLink ended as it started; see its log:\n{log}")
            if time.monotonic() > end:
                raise FedMoEError(f"the SuperLink does not answer within {seconds:g} s: {said}")
            time.sleep(1.0)
        for key in sorted((self.folder / "server" / "nodes").glob("*.pub")):
            said = self._flwr("supernode", "register", str(key), "fleet", "--name", key.stem)
            if said is not None:
                raise FedMoEError(f"the SuperLink refused the key {key}: {said}")
        for client in self.clients.values():
            client.start()

    def submit(self) -> None:
        """Submit the run, as the README says; again after a crash."""
        self.withdraw()
        self.submitted = self.flwr.run_with_log(self.state / "submitted.log", "run")

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

    def _flwr(self, *words: str) -> str | None:
        """Give Flower a command; return what it said if it failed."""
        done = subprocess.run(
            [self.flwr.script, *words],
            env=self.flwr.environment(),
            capture_output=True,
            text=True,
            timeout=120,
        )
        return f"{done.stdout}{done.stderr}" if done.returncode else None
