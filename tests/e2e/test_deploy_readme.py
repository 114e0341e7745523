"""The README that `fedmoe deploy init` writes, command by command, on this machine."""

import http.client
import os
import re
import shutil
import ssl
import stat
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from ports import free_ports
from tls import handshake

from fedmoe.cli.main import main
from fedmoe.report.ledger import read_ledger
from simulations.rehearsal.processes import Service

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs/deploy/rehearsal.yaml")
CLIENTS = "berlin=high,paris=low,rome=lowest"
NAMES = ("berlin", "paris", "rome")
BLOCK = re.compile(r"^```sh (once|stays)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def init(folder, server, *more):
    """The exit code of `fedmoe deploy init`."""
    words = (f"--server={server}", "--config", CONFIG, "--clients", CLIENTS)
    return main(["deploy", "init", str(folder), *words, *more])


def blocks(folder):
    """The README's shell blocks that can be run on loopback: how, and what."""
    found = BLOCK.findall((folder / "README.md").read_text())
    assert len(found) == 11, [text for _, text in found]
    return found


def shell(folder, text, seconds):
    """A block of the README, as a person pastes it into a terminal."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def environment():
    scripts = Path(sys.executable).parent
    return os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "160"}


@pytest.mark.skipif(
    not (shutil.which("openssl") and shutil.which("ssh-keygen")), reason="no openssl or ssh-keygen"
)
def test_the_readmes_keys_and_certificates_are_good(tmp_path):
    folder = tmp_path / "trial"
    assert init(folder, "127.0.0.1:8000") == 0
    changed = [folder / "server/server.crt", folder / "server/nodes/berlin.pub"]
    before = [path.read_bytes() for path in changed]
    key, certificate = [text for _, text in blocks(folder)[-2:]]
    shell(folder, key, 60)
    shell(folder, certificate, 60)
    assert all(path.read_bytes() != old for path, old in zip(changed, before, strict=True))
    for host in ("127.0.0.1", "localhost"):
        assert handshake(folder / "server", folder / "clients/rome/ca.crt", host)
    private = load_ssh_private_key((folder / "clients/berlin/node.key").read_bytes(), None)
    public = load_ssh_public_key((folder / "server/nodes/berlin.pub").read_bytes())
    assert private.public_key() == public
    assert stat.S_IMODE((folder / "clients/berlin/node.key").stat().st_mode) == 0o600


@pytest.mark.slow
def test_the_readme_word_for_word_on_loopback(tmp_path):
    folder = tmp_path / "trial"
    superlink, *nodes = free_ports(1 + len(NAMES))
    small = ("rounds=2", "data.per_domain=40", "--node-port", str(nodes[0]))
    assert init(folder, f"127.0.0.1:{superlink}", *small) == 0
    services = [Service(folder / "server/superlink.sh", folder / "server/state")]
    services += [Service(folder, folder / f"clients/{name}/state") for name in NAMES]
    said, started = [], []
    try:
        for how, text in blocks(folder):
            if how == "stays":
                started.append(background(folder, "bash", "-c", text))
                continue
            wait_for(folder, 3 if "list" in text else 0)
            said.append(shell(folder, text, 900))
    finally:
        for service in services:
            service.stop()
        for process in started:
            process.wait(timeout=10)
    assert said[0].count("registered successfully") == len(NAMES)
    assert said[1].count("online") == len(NAMES)
    (ledger,) = folder.glob("server/state/work/runs/*/ledger.jsonl")
    records = read_ledger(ledger)
    assert records[-1]["kind"] == "end"
    answers = [(r["tier"], r["status"]) for r in records if r["kind"] == "client"]
    assert answers == [(tier, "ok") for tier in ("high", "low", "lowest")] * 2
    assert "rehearsal" in said[3]
    assert (folder / "adapter/adapter_model.safetensors").exists()


def background(folder, *command):
    """A command that stays; its output goes to the folder's log."""
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            command, cwd=folder, env=environment(), stdout=log, stderr=log, start_new_session=True
        )


def wait_for(folder, num_online):
    """Until the SuperLink answers and so many clients are there."""
    end = time.monotonic() + 300
    while True:
        done = subprocess.run(
            ["server/flwr.sh", "supernode", "list", "fleet"],
            cwd=folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=120,
        )
        if done.returncode == 0 and done.stdout.count("online") >= num_online:
            return
        assert time.monotonic() < end, done.stdout + done.stderr + (folder / "log").read_text()
        time.sleep(1)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("nginx"), reason="NO NGINX HERE: THE PROXY IS NOT TESTED")
def test_the_proxy_lets_clients_in_and_nobody_else(tmp_path):
    folder = tmp_path / "fleet"
    public, superlink, *nodes = free_ports(2 + len(NAMES))
    small = ("rounds=2", "data.per_domain=40", "--node-port", str(nodes[0]))
    assert init(folder, f"fed.example.org:{public}", *small) == 0
    for name in ("server/superlink.sh", "server/flwr.sh", "server/nginx.conf"):
        swap(folder / name, "8000", str(superlink))
    # No name server knows the example; its certificate is good for localhost, too.
    for name in NAMES:
        swap(folder / f"clients/{name}/supernode.sh", "fed.example.org", "localhost")
    nginx = ["nginx", "-c", str(folder / "server/nginx.conf"), "-g", "daemon off;"]
    services = [Service(folder / "server/superlink.sh", folder / "server/state")]
    services += [Service(folder, folder / f"clients/{name}/state") for name in NAMES]
    started = [background(folder, *nginx), background(folder, "server/superlink.sh")]
    try:
        wait_for(folder, 0)
        for name in NAMES:
            register = f"register server/nodes/{name}.pub fleet --name {name}"
            shell(folder, f"server/flwr.sh supernode {register}", 120)
            started.append(background(folder, f"clients/{name}/supernode.sh"))
        wait_for(folder, len(NAMES))
        for path in (
            "/v1/control/list-nodes",
            "/docs",
            "/v1/fleet/../control/list-nodes",
            "/v1/fleet/..%2fcontrol/list-nodes",
            "/v1/runtime/x",
            "/health",
        ):
            assert status(folder, public, path) == 404, path
        assert status(folder, public, "/v1/fleet/activate-node") in (400, 401, 415, 422)
        shell(folder, "server/flwr.sh run", 900)
    finally:
        started[0].terminate()
        for service in services:
            service.stop()
        for process in started:
            process.wait(timeout=10)
    (ledger,) = folder.glob("server/state/work/runs/*/ledger.jsonl")
    answers = [r["status"] for r in read_ledger(ledger) if r["kind"] == "client"]
    assert answers == ["ok"] * 2 * len(NAMES)


def swap(path, old, new):
    """Another text in a file, in place."""
    text = path.read_text()
    assert old in text, path
    path.write_text(text.replace(old, new))


def status(folder, port, path):
    """The HTTP status of a request from outside."""
    context = ssl.create_default_context(cafile=str(folder / "clients/berlin/ca.crt"))
    connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=20)
    with closing(connection):
        connection.request("POST", path, body=b"")
        return connection.getresponse().status
