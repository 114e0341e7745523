"""`fedmoe deploy init`: what it writes, and what it refuses."""

import os
import re
import shutil
import ssl
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from tls import handshake

from fedmoe.cli.main import main
from fedmoe.config import load_experiment
from fedmoe.privacy.masks.identity import owner_of
from server.settings import read_settings

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs/deploy/rehearsal.yaml")
CLIENTS = "berlin=high,paris=low,rome=lowest"
NAMES = ("berlin", "paris", "rome")


def init(folder, server, *more, clients=CLIENTS, config=CONFIG):
    """The exit code of `fedmoe deploy init`."""
    words = (f"--server={server}", "--config", config, "--clients", clients)
    return main(["deploy", "init", str(folder), *words, *more])


@pytest.fixture(scope="module")
def remote(tmp_path_factory):
    """The folder of a fleet on machines of their own."""
    folder = tmp_path_factory.mktemp("deploy") / "fleet"
    assert init(folder, "fed.example.org") == 0
    return folder


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The folder of a fleet on this machine."""
    folder = tmp_path_factory.mktemp("deploy") / "trial"
    assert init(folder, "127.0.0.1:8000") == 0
    return folder


def test_every_machine_finds_its_part(remote):
    names = {str(p.relative_to(remote)) for p in remote.rglob("*") if p.is_file()}
    assert names >= {
        "README.md",
        "compose.yaml",
        "Dockerfile",
        ".dockerignore",
        "ca/ca.key",
        "ca/ca.crt",
        "server/superlink.sh",
        "server/flwr.sh",
        "server/nginx.conf",
        "server/server.crt",
        "server/server.key",
        "server/ca.crt",
        "server/fedmoe-superlink.service",
        "server/fedmoe-proxy.service",
        "server/app/pyproject.toml",
        "server/app/server/app.py",
        "server/app/clients/app.py",
        "server/app/configs/experiment.yaml",
    }
    for name in NAMES:
        part = {p.name for p in (remote / "clients" / name).iterdir()}
        service = f"fedmoe-{name}.service"
        assert part == {"ca.crt", "node.key", "supernode.sh", "environment.sh", service}
        assert f"server/nodes/{name}.pub" in names
    # A client's machine holds no key but its own, the server none of a client's.
    secrets = {name for name in names if name.endswith(".key")}
    assert secrets == {"ca/ca.key", "server/server.key", *(f"clients/{n}/node.key" for n in NAMES)}


def test_secrets_can_be_read_by_their_owner_alone(remote):
    assert stat.S_IMODE(remote.stat().st_mode) == 0o700
    for path in remote.rglob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for path in remote.rglob("*"):
        assert path.is_dir() or path.suffix == ".key" or b"PRIVATE KEY" not in path.read_bytes()


@pytest.mark.parametrize("host", ["fed.example.org", "localhost", "127.0.0.1"])
def test_a_client_trusts_the_server_by_each_of_its_names(remote, host):
    assert handshake(remote / "server", remote / "clients/rome/ca.crt", host)


@pytest.mark.parametrize("host", ["evil.example.org", "10.0.0.1"])
def test_a_client_trusts_no_other_name(remote, host):
    with pytest.raises(ssl.SSLCertVerificationError, match="match"):
        handshake(remote / "server", remote / "clients/rome/ca.crt", host)


def test_a_client_trusts_no_other_deployments_server(remote, local):
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        handshake(local / "server", remote / "clients/rome/ca.crt", "127.0.0.1")


def test_every_client_has_a_key_of_its_own_that_flower_takes(remote):
    seen = set()
    for name in NAMES:
        private = load_ssh_private_key((remote / f"clients/{name}/node.key").read_bytes(), None)
        public = load_ssh_public_key((remote / f"server/nodes/{name}.pub").read_bytes())
        assert private.public_key() == public
        assert public.curve.name == "secp384r1"
        seen.add(public.public_numbers())
    assert len(seen) == len(NAMES)


def test_owners_of_a_masked_run_know_each_others_keys(remote, tmp_path):
    fleet = tmp_path / "fleet"
    assert init(fleet, "fed.example.org", "secure_aggregation={}") == 0
    for name in NAMES:
        part = fleet / "clients" / name
        owner = owner_of(str(part / "node.key"), str(part / "owners.pub"))
        assert (owner.name, {*owner.known}) == (name, {*NAMES})
        script = (part / "supernode.sh").read_text()
        keys = '"$here/node.key\\" known_keys=\\"$here/owners.pub\\"'
        assert f"signing_key=\\{keys} state=" in script
    assert "WHEEL[report,home,privacy]" in (fleet / "README.md").read_text()
    assert "known_keys" not in (remote / "clients/rome/supernode.sh").read_text()


def test_every_client_is_in_its_tier(remote):
    experiment = load_experiment(remote / "server/app/configs/experiment.yaml")
    tiers = {name: tier.clients for name, tier in experiment.budget.tiers.items()}
    assert tiers == {"high": (0,), "low": (1,), "lowest": (2,)}
    assert experiment.budget.assign(3, 8, seed=7) == ("high", "low", "lowest")
    assert experiment.partition.num_clients == 3
    assert 'clients=\\"2\\"' in (remote / "clients/rome/supernode.sh").read_text()
    assert "All machines hold the same data set" in (remote / "README.md").read_text()


def test_rows_of_their_own_stay_with_their_owners(tmp_path):
    rows = [f"{name}=/srv/{name}.jsonl" for name in NAMES]
    own = str(ROOT / "configs/own_rows.yaml")
    clients = ",".join(
        f"{name}={tier}" for name, tier in zip(NAMES, ("high", "low", "low"), strict=True)
    )
    fleet = tmp_path / "fleet"
    more = ("--data", *rows, "data.prompt=question")
    assert init(fleet, "fed.example.org", *more, clients=clients, config=own) == 0
    e = load_experiment(fleet / "server/app/configs/experiment.yaml")
    assert (e.data.name, e.data.path, e.data.clients) == ("federated", "", tuple(NAMES))
    assert e.data.prompt == "question"
    assert [e.budget.tier_of(name, 4, seed=7) for name in NAMES] == ["high", "low", "low"]
    for name in NAMES:
        text = (fleet / f"clients/{name}/supernode.sh").read_text()
        assert f'data=\\"{name}=/srv/{name}.jsonl\\"' in text
        assert not any(other in text for other in rows if not other.startswith(name))
    assert "stay on its machine" in (fleet / "README.md").read_text()
    app = tomllib.loads((fleet / "server/app/pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert app["config"]["nodes"] == "berlin=berlin; paris=paris; rome=rome"


def test_the_app_has_this_projects_run_config_and_goes_on_after_a_crash(remote):
    app = tomllib.loads((remote / "server/app/pyproject.toml").read_text())["tool"]["flwr"]["app"]
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    changed = {
        "config": "configs/experiment.yaml",
        "num_nodes": 3,
        "resume": "auto",
        "nodes": "berlin=0; paris=1; rome=2",
    }
    assert app["config"] == ours["config"] | changed
    assert app["components"] == ours["components"]
    assert app["fab-include"] == ours["fab-include"]


def test_a_plans_deadline_is_the_servers_too(tmp_path):
    config = str(ROOT / "configs/deploy/olmoe_three_gpus.yaml")
    clients = "a=gpu24,b=gpu48,c=gpu80"
    assert init(tmp_path / "fleet", "fed.example.org", clients=clients, config=config) == 0
    app = tomllib.loads((tmp_path / "fleet/server/app/pyproject.toml").read_text())
    settings = read_settings(app["tool"]["flwr"]["app"]["config"])
    assert (settings.task_seconds, settings.round_seconds) == (370, 1110)
    assert "from the budget's `deadline_seconds`" in (tmp_path / "fleet/README.md").read_text()


def test_a_client_is_registered_under_its_name_and_served_by_no_other(remote):
    readme = (remote / "README.md").read_text()
    app = tomllib.loads((remote / "server/app/pyproject.toml").read_text())["tool"]["flwr"]["app"]
    for number, name in enumerate(NAMES):
        assert f"register server/nodes/{name}.pub fleet --name {name} " in readme
        assert f'name=\\"{name}\\"' in (remote / f"clients/{name}/supernode.sh").read_text()
        assert f"{name}={number}" in app["config"]["nodes"]


def test_nothing_but_clients_requests_comes_in_from_outside(remote):
    assert "--host 127.0.0.1 --port 8000" in (remote / "server/superlink.sh").read_text()
    nginx = (remote / "server/nginx.conf").read_text()
    assert re.findall(r"location (.+) {", nginx) == ["/v1/fleet/", "= /v1/fleet/push-object", "/"]
    # A fleet of three: one client alone has four requests under way.
    assert re.findall(r"limit_conn (\w+ \d+);", nginx) == ["address 32", "everyone 96"]
    assert re.findall(r"client_max_body_size (\w+);", nginx) == ["1m", "6m"]
    assert re.findall(r"listen (.*);", nginx) == ["8443 ssl", "[::]:8443 ssl"]
    assert "location / { return 404; }" in nginx


def test_containers_run_without_root_and_images_hold_no_keys(remote):
    services = yaml.safe_load((remote / "compose.yaml").read_text())["services"]
    assert set(services) == {"superlink", "proxy", *NAMES}
    for name, service in services.items():
        assert service["user"] == "10001:10001", name
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"] is True, name
        assert ("ports" in service) == (name == "superlink")
    assert services["proxy"]["network_mode"] == "service:superlink"
    lines = (remote / "Dockerfile").read_text().splitlines()
    assert "USER fedmoe" in lines
    assert [line for line in lines if line.startswith("COPY")] == ["COPY fedmoe-*.whl /tmp/"]
    assert (remote / ".dockerignore").read_text() == "*\n!fedmoe-*.whl\n"


def test_services_are_no_root_and_come_back_after_a_crash(remote):
    units = sorted(remote.rglob("*.service"))
    assert len(units) == 2 + len(NAMES)
    for unit in units:
        lines = unit.read_text().splitlines()
        for line in (
            "User=fedmoe",
            "Restart=on-failure",
            "NoNewPrivileges=yes",
            "ProtectSystem=strict",
            "ProtectHome=yes",
            "PrivateTmp=yes",
            "StartLimitIntervalSec=0",
        ):
            assert lines.count(line) == 1, (unit.name, line)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze here")
def test_systemd_understands_the_services(remote):
    units = sorted(map(str, remote.rglob("*.service")))
    done = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, timeout=60
    )
    # What the services start lies elsewhere on this machine, or is not installed.
    rest = [line for line in done.stderr.splitlines() if "is not executable" not in line]
    assert [line for line in rest if "fedmoe" in line] == []


def test_scripts_are_scripts(remote, local):
    for path in (*remote.rglob("*.sh"), *local.rglob("*.sh")):
        assert subprocess.run(["sh", "-n", path], timeout=10).returncode == 0, path
        assert os.access(path, os.X_OK), path
        assert "{{" not in path.read_text(), path


def test_on_loopback_tls_and_keys_are_optional(tmp_path):
    assert init(tmp_path / "open", "localhost", "--insecure") == 0
    assert [p.name for p in (tmp_path / "open").rglob("*.key")] == []
    assert "--insecure" in (tmp_path / "open/server/superlink.sh").read_text()
    assert "register" not in (tmp_path / "open/README.md").read_text()


WRONG = {
    "insecure, off loopback": (("10.0.0.5", "--insecure"), {}, "--insecure: 10.0.0.5 is not"),
    "no host": (("-bad-",), {}, "--server: '-bad-' is no host"),
    "no port": (("h:0",), {}, "--server: '0' is no port"),
    "no tier": (("h",), {"clients": "a"}, "--clients: 'a': expected NAME=TIER"),
    "unknown tier": (("h",), {"clients": "a=hihg"}, "did you mean 'high'"),
    "twice": (("h",), {"clients": "a=high,a=low"}, "'a' is named twice"),
    "a path for a name": (("h",), {"clients": "../a=high"}, "'../a' is no name"),
    "data of nobody": (("h", "--data", "x=/y"), {}, "'x' is none of the clients"),
    "data of some": (("h", "--data", "rome=/y"), {}, "needs its path"),
    "data anywhere": (("h", "--data", "rome=rows.jsonl"), {}, "expected an absolute path"),
    "no config": (("h",), {"config": "missing.yaml"}, "missing.yaml"),
    "not under Flower": (("h", "aggregation.name=fedsa_lora"), {}, "'fedsa_lora' does not run"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_refused_and_leave_nothing(tmp_path, capsys, case):
    words, named, said = WRONG[case]
    assert init(tmp_path / "fleet", *words, **named) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_touched(local, capsys):
    before = {path: path.read_bytes() for path in local.rglob("*") if path.is_file()}
    assert init(local, "127.0.0.1:8000") == 2
    assert "exists" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in local.rglob("*") if path.is_file()} == before


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    whole, written = Path.write_bytes, []

    def full(path, data):
        if len(written) == 5:
            raise OSError(28, "No space left on device", str(path))
        written.append(path)
        return whole(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert init(tmp_path / "fleet", "127.0.0.1:8000") == 2
    assert written
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_whatever_the_umask_others_can_change_nothing_and_services_can_read(tmp_path, umask):
    before = os.umask(umask)
    try:
        assert init(tmp_path / "fleet", "fed.example.org") == 0
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "fleet").rglob("*")}
    secret = {path: mode for path, mode in modes.items() if path.suffix == ".key"}
    assert {*secret.values()} == {0o600}
    assert modes.pop(tmp_path / "fleet/ca") == 0o700
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o755}
    assert not any(mode & 0o022 for mode in modes.values())
