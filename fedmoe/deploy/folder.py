"""The folder of a deployment: written beside its place and renamed, so that it is whole or not."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import mkdtemp

from jinja2 import Environment, PackageLoader, StrictUndefined

from fedmoe.budget import Auto
from fedmoe.config import Experiment
from fedmoe.deploy.app import app_files
from fedmoe.deploy.fleet import Fleet
from fedmoe.deploy.keys import SERVER_DAYS, Authority, node_keys, pem, pem_key
from fedmoe.errors import FedMoEError

SECRET, SCRIPT, PLAIN = 0o600, 0o755, 0o644


def write_folder(folder: Path, fleet: Fleet, experiment: Experiment) -> None:
    """Write everything that the fleet needs to `folder`; keys can be read by their owner alone.

    Raises:
        FedMoEError: the folder exists, or cannot be made; nothing of it is left then.
    """
    if folder.exists() or folder.is_symlink():
        raise FedMoEError(f"{folder} exists; it may hold keys in use, so name another folder")
    files = _texts(fleet, experiment) | ({} if fleet.insecure else _keys(fleet))
    for path, data in app_files(experiment, fleet).items():
        files[f"server/app/{path}"] = data
    try:
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        made = Path(mkdtemp(prefix=f".{folder.name}.", dir=folder.absolute().parent))
    except OSError as error:
        raise FedMoEError(f"{folder} cannot be made: {error.strerror}") from error
    try:
        _write(made, files)
        made.chmod(0o700)
        # An empty folder made meanwhile would be replaced, one with files is not.
        made.rename(folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _write(root: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = {".key": SECRET, ".sh": SCRIPT}.get(path.suffix, PLAIN)
        # With its mode from the start: a key is never readable, not for a moment.
        path.touch(mode=mode)
        path.write_bytes(data)
        path.chmod(mode)


def _keys(fleet: Fleet) -> dict[str, bytes]:
    """The CA, the server's certificate and every client's key pair, by path."""
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
    return files


def _texts(fleet: Fleet, experiment: Experiment) -> dict[str, bytes]:
    """README, scripts and services, by path."""
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
    forms = Environment(
        loader=PackageLoader("fedmoe.deploy"),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    tiers, planned = experiment.budget.resolved(1).items(), isinstance(experiment.budget, Auto)
    host = fleet.host if fleet.loopback else "127.0.0.1"
    values = {
        "fleet": fleet,
        "proxied": not fleet.loopback,
        "run_name": experiment.name,
        "learns_factors": experiment.rescaling.learned,
        "gpu": experiment.model.device == "cuda",
        "cpu_only": experiment.model.device == "cpu",
        "server_days": SERVER_DAYS,
        "deadline": getattr(experiment.budget, "deadline_seconds", None),
        "top_k": {name: "planned" if planned else tier.top_k for name, tier in tiers},
        "superlink_host": host,
        "superlink_address": f"[{host}]:{fleet.superlink_port}"
        if ":" in host
        else f"{host}:{fleet.superlink_port}",
    }
    files = {place: forms.get_template(form).render(values) for place, form in places.items()}
    for node in fleet.nodes:
        for name, form in (
            ("environment.sh", "environment.sh"),
            ("supernode.sh", "supernode.sh"),
            (f"fedmoe-{node.name}.service", "node.service"),
        ):
            files[f"clients/{node.name}/{name}"] = forms.get_template(form).render(
                values | {"node": node}
            )
    return {place: text.encode() for place, text in files.items()}
