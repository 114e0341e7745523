"""What a client keeps between rounds: one flat buffer per name, in a file per round.

The files are `<folder>/client-<c>/<name>/round-<t>.safetensors`, each written whole, with its own
sha256; round t reads the newest of the rounds before t. So a round done again reads what it read
the first time, in whichever process. A damaged file is never passed over for an older one: what a
client owes, or corrects its steps by, would be another's, and the run's bits with it. Its operator
is told, and may remove it.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fedmoe.adapter import Adapter, Layout
from fedmoe.errors import CheckpointError, WireError
from fedmoe.runs import checkpoint
from fedmoe.system.files import write_bytes

KEPT = checkpoint.KEPT + 1
"""Files per client: a round that is done again needs the one before its own, and so it does where
the newest checkpoint is damaged and the one before it has to do."""
NO_FOLDER = (
    "this run's clients keep something between rounds (the strategy's own part, or what "
    "upload.error_feedback has not sent yet), and there is no folder for it here. On a Flower node "
    "name one: --node-config 'state=\"/path\"', or state in the run config, the same for all nodes "
    "that may get the same client's tasks"
)


def home_of(folder: Path | None, client: int, name: str) -> Path:
    """Where a client keeps what is called `name`.

    Raises:
        CheckpointError: there is no folder.
    """
    if folder is None:
        raise CheckpointError(NO_FOLDER)
    return folder / f"client-{client}" / name


def read_client_state(home: Path, before: int, layout: Layout) -> tuple[int, Adapter]:
    """What a client kept in the rounds before `before`, and the last of them it took part in.

    Zero, from round 0, when it took part in none.

    Raises:
        CheckpointError: the file is damaged or of another adapter, or was cleared away since; or
            it cannot be read.
    """
    rounds = _rounds(home)
    if not (earlier := [r for r in rounds if r < before]):
        if rounds and (since := _read(home, rounds[0], layout)[0]):
            raise CheckpointError(
                f"{home}: round {before} needs what was kept in round {since}; the oldest one kept "
                f"is of round {rounds[0]}. Start the run anew, in a folder of its own"
            )
        return 0, Adapter(layout, torch.zeros(layout.size))
    return earlier[-1], _read(home, earlier[-1], layout)[1]


def write_client_state(home: Path, round: int, before: int, values: Adapter) -> None:
    """Keep `values` after `round`; `before` is the round whose values went into them.

    Raises:
        CheckpointError: the file cannot be written; those before it stay.
    """
    path, flat = _path(home, round), values.flat.contiguous()
    about = {"round": str(round), "layout": values.layout.digest, "before": str(before)}
    about["sha256"] = _digest(flat, about)
    try:
        home.mkdir(parents=True, exist_ok=True)
        write_bytes(path, save({"values": flat}, about))
        for old in _rounds(home)[:-KEPT]:
            _path(home, old).unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from error


def _read(home: Path, round: int, layout: Layout) -> tuple[int, Adapter]:
    """The round before that of a file, and the file's values."""
    path = _path(home, round)
    try:
        with safe_open(path, "pt") as file:
            about, flat = file.metadata() or {}, file.get_tensor("values")
        if about.pop("sha256") != _digest(flat, about) or about["round"] != str(round):
            raise ValueError("its sha256 is not that of its values")
        if about["layout"] != layout.digest or flat.dtype != torch.float32:
            raise CheckpointError(f"{path}: it belongs to another adapter")
        return int(about["before"]), Adapter(layout, flat)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, WireError) as error:
        raise CheckpointError(
            f"{path}: what a client kept is damaged ({type(error).__name__}: {error}). Restore it, "
            "or remove it: then the client goes on from what it kept before that, or from nothing, "
            "and the run's bits are others than without the damage"
        ) from error


def _digest(flat: Tensor, about: dict[str, str]) -> str:
    """A hash of the values, and of what is said about them."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    digest.update(f"{tuple(flat.shape)} {flat.dtype}\0".encode())
    digest.update(flat.numpy().data)
    return digest.hexdigest()


def _path(home: Path, round: int) -> Path:
    return home / f"round-{round}.safetensors"


def _rounds(home: Path) -> list[int]:
    """The rounds of which something is kept, in order."""
    names = (re.fullmatch(r"round-(\d+)\.safetensors", p.name) for p in home.glob("round-*"))
    return sorted(int(name[1]) for name in names if name)
