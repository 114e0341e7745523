"""A node's description of itself for the server, made without torch, so that it is quick."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from clients.messages import parsed
from clients.own_rows import here, own_rows, pooled_digest
from fedmoe.errors import FedMoEError
from fedmoe.section.imports import Imports, Refused
from fedmoe.system.digests import code_digest, template_digest
from fedmoe.system.machine import main_memory, num_threads, processor

LIBRARIES = ("fedmoe", "flwr", "torch", "transformers")
MOST_NOISE = 1e9
GPU_SECONDS = 10
"""Time for `nvidia-smi`."""


def about(
    node_config: Mapping[str, object], data: Mapping[str, Any] | None = None
) -> dict[str, str | int]:
    """Return what `server/about.py` checks: name, clients, rows, code, versions and machine.

    Args:
        data: the experiment's section `data` as far as the server tells it: its name, and where
            the rows are; and by which template they are worded.

    Raises:
        FedMoEError: the node's config is faulty, or the rows that it names are not there.
    """
    data, own, digest = data or {}, {}, ""
    if data.get("name") == "federated":
        own = own_rows(node_config, data).digests
    elif path := str(data.get("path", "")):
        digest = pooled_digest(node_config, path)
    template = str(data.get("template", ""))
    device, memory_bytes = gpu() or ("cpu", main_memory()[1])
    return {
        "name": str(node_config.get("name", "")),
        "clients": ",".join(map(str, own_clients(node_config))),
        "rows": ",".join(f"{name}={of}" for name, of in own.items()),
        "data": digest,
        "template": template_digest(here(node_config, "text.template", template)),
        "code": code_digest(Path(__file__).parent),
        "device": device,
        "memory_bytes": memory_bytes,
        "threads": num_threads(),
        "processor": processor(),
        "python": platform.python_version(),
        **{library: version_of(library) for library in LIBRARIES},
    }


def own_clients(node_config: Mapping[str, object]) -> list[int]:
    """Return the clients that the node's config names, as `clients=3` or `clients="0,3"`."""
    named = str(node_config.get("clients", ""))
    try:
        return sorted(int(number) for number in named.split(",") if number.strip())
    except ValueError:
        raise FedMoEError(
            f"node config: clients is {named!r}; expected numbers, such as 0,3"
        ) from None


def allowed_modules(node_config: Mapping[str, object]) -> list[str]:
    """Return the modules that an experiment may name, as `allow="my_rules my_package.data"`."""
    named = str(node_config.get("allow", "")).split()
    if bad := [name for name in named if not re.fullmatch(r"\w+(\.\w+)*", name, re.ASCII)]:
        raise FedMoEError(
            f"node config: allow has {bad[0]!r}; expected names of modules, such as my_rules"
        )
    return named


def least_noise_of(node_config: Mapping[str, object]) -> float:
    """Return the noise multiplier that this node insists on: `least_noise` of its config, or 0."""
    named = node_config.get("least_noise", 0.0)
    try:
        if 0 <= (noise := float(str(named))) <= MOST_NOISE:
            return noise
    except ValueError:
        pass
    raise FedMoEError(
        f"node config: least_noise is {named!r}; expected privacy's noise multiplier, such as 1.0"
    )


def check_components(request: Mapping[str, object], node_config: Mapping[str, object]) -> None:
    """Refuse a run whose components are missing, not allowed, or of another version here.

    None of them is imported. Every task is checked by the same rules.

    Raises:
        FedMoEError: with all of them.
    """
    imports, faults = Imports(tuple(allowed_modules(node_config))), []
    for component in parsed(request.get("components", "[]")):
        try:
            imports.check_version(*component)
        except Refused as error:
            faults.append(str(error))
    if faults:
        raise FedMoEError("; ".join(faults))


def gpu() -> tuple[str, int] | None:
    """Return the name and bytes of the first GPU by NVIDIA's own tool, if both exist."""
    tool = shutil.which("nvidia-smi")
    # Empty or -1 hides all GPUs from CUDA: Ray sets it for workers that have been given none.
    if tool is None or os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return None
    command = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=GPU_SECONDS)
        name, mebibytes = said.stdout.splitlines()[0].rsplit(",", 1)
        return f"cuda {name.strip()}", int(mebibytes) * 2**20
    except (OSError, subprocess.TimeoutExpired, IndexError, ValueError):
        return None


def version_of(library: str) -> str:
    """Return an installed library's version without importing it."""
    try:
        return version(library)
    except PackageNotFoundError:
        return "missing"
