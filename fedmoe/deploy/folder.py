"""The folder of a deployment, which appears whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from fedmoe.budget import Auto
from fedmoe.config import Experiment
from fedmoe.deploy.app import app_files
from fedmoe.deploy.fleet import Fleet, address
from fedmoe.deploy.keys import SERVER_DAYS, Authority, node_keys, pem, pem_key
from fedmoe.errors import FedMoEError
from fedmoe.runs.roster import is_federated
from fedmoe.system.folders import whole_folder

SECRET, SCRIPT, PLAIN = 0o600, 0o755, 0o644
PRIVATE, SHARED = 0o700, 0o755
"""Modes of the CA's folder, which stays here, and of those that services read elsewhere."""
EXTRAS = {"home_assistant": "home", "reasoning_gym": "reasoning"}
"""Extras of this package that built-in data need on every machine."""


def write_folder(folder: Path, fleet: Fleet, experiment: Experiment) -> None:
    """Write everything that the fleet needs to `folder`; only its owner can read the keys.

    Raises:
        FedMoEError: the folder exists, or cannot be made; nothing of it is left then.
    """
    _check_new(folder)
    files = _texts(fleet, experiment) | ({} if fleet.insecure else _keys(fleet, experiment))
    for path, data in app_files(experiment, fleet).items():
        files[f"server/app/{path}"] = data
    with whole_folder(folder, _check_new) as made:
        made.chmod(PRIVATE)
        _write(made, files)


def _check_new(folder: Path) -> None:
    if folder.exists() or folder.is_symlink():
        raise FedMoEError(f"{folder} exists; it may hold keys in use, so name another folder")


def _write(root: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        path = root / name
        for parent in reversed(path.relative_to(root).parents[:-1]):
            # Whatever the umask is: `rsync -a` carries these modes to the machines.
            (root / parent).mkdir(exist_ok=True)
            (root / parent).chmod(PRIVATE if parent.name == "ca" else SHARED)
        mode = {".key": SECRET, ".sh": SCRIPT}.get(path.suffix, PLAIN)
        # With its mode from the start: a key is never readable, not for a moment.
        path.touch(mode=mode)
        path.write_bytes(data)
        path.chmod(mode)


def _keys(fleet: Fleet, experiment: Experiment) -> dict[str, bytes]:
    """Return the CA, the server's certificate and every client's key pair, by path.

    With secure aggregation each client knows the others' public keys, too.
    """
    authority = Authority.new(fleet.host)
    certificate, key = authority.server(fleet.host)
    root = pem(authority.certificate)
    files = {
        "ca/ca.crt": root,
        "ca/ca.key": pem_key(authority.key),
        "server/ca.crt": root,
        "server/server.crt": certificate,
        "server/server.key": key,
    }
    for node in fleet.nodes:
        private, public = node_keys(node.name)
        files[f"clients/{node.name}/ca.crt"] = root
        files[f"clients/{node.name}/node.key"] = private
        files[f"server/nodes/{node.name}.pub"] = public
    if experiment.secure_aggregation:
        known = b"".join(files[f"server/nodes/{node.name}.pub"] for node in fleet.nodes)
        files |= {f"clients/{node.name}/owners.pub": known for node in fleet.nodes}
    return files


def _texts(fleet: Fleet, experiment: Experiment) -> dict[str, bytes]:
    """Return README, scripts and services, by path."""
    places = {
        "README.md": "README.md",
        "compose.yaml": "compose.yaml",
        "Dockerfile": "Dockerfile",
        ".dockerignore": "dockerignore",
        ".gitignore": "gitignore",
        "server/environment.sh": "environment.sh",
        "server/superlink.sh": "superlink.sh",
        "server/flwr.sh": "flwr.sh",
        "server/fedmoe-superlink.service": "superlink.service",
    }
    if not fleet.loopback:
        places["server/nginx.conf"] = "nginx.conf"
        places["server/fedmoe-proxy.service"] = "proxy.service"
    trust = "privacy" if experiment.secure_aggregation or experiment.privacy else None
    tiers, planned = experiment.budget.resolved(1).items(), isinstance(experiment.budget, Auto)
    forms = Environment(
        loader=PackageLoader("fedmoe.deploy"),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    forms.globals |= {
        "fleet": fleet,
        "extras": ",".join(filter(None, ("report", EXTRAS.get(experiment.data.name), trust))),
        "masked": experiment.secure_aggregation is not None,
        "own_rows": is_federated(experiment),
        "proxied": not fleet.loopback,
        "run_name": experiment.name,
        "learns_factors": experiment.rescaling.learned,
        "gpu": experiment.model.device == "cuda",
        "cpu_only": experiment.model.device == "cpu",
        "server_days": SERVER_DAYS,
        "deadline": getattr(experiment.budget, "deadline_seconds", None),
        "top_k": {name: "planned" if planned else tier.top_k for name, tier in tiers},
        "superlink_host": fleet.superlink_host,
        "superlink_address": address(fleet.superlink_host, fleet.superlink_port),
    }
    files = {place: forms.get_template(form).render() for place, form in places.items()}
    for node in fleet.nodes:
        for form in ("environment.sh", "supernode.sh", "node.service"):
            name = f"fedmoe-{node.name}.service" if form == "node.service" else form
            text = forms.get_template(form).render(node=node)
            files[f"clients/{node.name}/{name}"] = text
    return {place: text.encode() for place, text in files.items()}
