"""Flower in processes of its own, shut off from this machine's other Flower, and ended for sure."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from ports import free_ports

from fedmoe.report.ledger import read_ledger

PROJECT = Path(__file__).parents[2]
SCRIPTS = Path(sys.executable).parent
SUPERLINK_SECONDS, RUN_SECONDS = 300, 1800
"""Far more than it takes, on a machine that has much else to do, too."""
MOST_PORTS = 5
TAKEN = f"[Errno {errno.EADDRINUSE}]"
GONE = (ProcessLookupError, PermissionError, FileNotFoundError)
"""A process may end, or turn out to be another user's, while it is looked at."""


class Federation:
    """Starts Flower's commands with a home, ports and a working folder of their own."""

    def __init__(self, folder):
        self.folder, self.home = folder, folder / "home"
        # Ray's workers put the working folder ahead of the bundle: it must hold nothing.
        self.neutral = folder / "neutral"
        for path in (self.home, self.neutral):
            path.mkdir()
        self.started = []
        self.address = ""
        """The SuperLink's, once there is one."""
        self.environment = os.environ | {
            "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(self.home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            # Ray's default is 15: beside anything else that computes, its workers would starve.
            "RAY_worker_niceness": "0",
            "OMP_NUM_THREADS": "1",
        }

    def start(self, *command, home=None):
        """A command that goes on in the background; its output goes to a file of the folder."""
        environment = self.environment | ({"FLWR_HOME": str(home)} if home else {})
        with (self.folder / f"{command[0]}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.neutral,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def superlink(self, *options):
        """A SuperLink on loopback that `flwr run` finds under the name `loopback`.

        The one that `flwr run` starts by itself is given up after 15 s: too few on a busy machine.
        """
        for taken in range(MOST_PORTS):
            self.address = f"127.0.0.1:{free_port()}"
            if self._listens(*options):
                break
            # A port that was free may be another's by now.
            assert self.log("flower-superlink").count(TAKEN) > taken, self.log("flower-superlink")
        else:
            raise AssertionError(self.log("flower-superlink"))
        text = f'[superlink.loopback]\naddress = "{self.address}"\ninsecure = true\n'
        (self.home / "config.toml").write_text(text)

    def _listens(self, *options):
        """Return whether a SuperLink started at our address gets to listen there, or ends."""
        host, port = self.address.split(":")
        command = ("flower-superlink", "--insecure", "--host", host, "--port", port, *options)
        process, end = self.start(*command), time.monotonic() + SUPERLINK_SECONDS
        # Its own words: at an address anybody may answer.
        while f"running on http://{self.address}" not in self.log("flower-superlink"):
            if process.poll() is not None:
                return False
            assert time.monotonic() < end, self.log("flower-superlink")
            time.sleep(0.2)
        return True

    def supernode(self, *options, home=None):
        """A SuperNode of our SuperLink, in a home of its own if given."""
        link, port = ("--superlink", self.address), ("--port", str(free_port()))
        return self.start("flower-supernode", "--insecure", *link, *port, *options, home=home)

    def flwr_run(self, *options, config, seconds=RUN_SECONDS, overrides="", **run_config):
        """`flwr run` to its end; the run's ledger."""
        runs = self.folder / "runs"
        run_config |= {
            "config": f'"{config}"',
            "overrides": f'"simulation.folder={runs} {overrides}"',
        }
        text = " ".join(f"{key}={value}" for key, value in run_config.items())
        process = self.start(
            "flwr", "run", PROJECT, "loopback", "--stream", "--run-config", text, *options
        )
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        ledgers = list(runs.glob("*/ledger.jsonl"))
        assert len(ledgers) == 1, self.log("flwr") + self.log("flower-superlink")
        records = read_ledger(ledgers[0])
        assert records[-1]["kind"] == "end", self.log("flwr") + self.log("flower-superlink")
        return records

    def outcome(self, *options, config, seconds=RUN_SECONDS, **run_config):
        """Flower's status of a `flwr run` that has ended, such as `finished:completed`."""
        run_config |= {"config": f'"{config}"'}
        text = " ".join(f"{key}={value}" for key, value in run_config.items())
        run = ("flwr", "run", PROJECT, "loopback", "--stream", "--run-config", text, *options)
        for command in (run, ("flwr", "ls", "loopback", "--format", "json")):
            self.start(*command).wait(seconds)
        found = re.findall(r'"status": *"([^"]*)"', self.log("flwr"))
        assert found, self.log("flwr") + self.log("flower-superlink")
        return found[-1]

    def log(self, command):
        return (self.folder / f"{command}.log").read_text(encoding="utf-8", errors="replace")

    def stop(self):
        """End every process that was started from here, detached ones and Ray's included."""
        for number, seconds in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
            end = time.monotonic() + seconds
            for pid in self._pids():
                with suppress(*GONE):
                    os.kill(pid, number)
            while self._pids() and time.monotonic() < end:
                time.sleep(0.1)
        for process in self.started:
            process.wait(timeout=10)

    def _pids(self):
        """Processes that inherited our FLWR_HOME: a detached SuperLink has no other mark."""
        mark = f"FLWR_HOME={self.home}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(*GONE):
                if mark in path.read_bytes():
                    found.append(int(path.parent.name))
        return [pid for pid in found if not _is_zombie(pid)]


def _is_zombie(pid):
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


def free_port():
    """A port that nobody listens on now."""
    return free_ports(1)[0]
