"""A client's state between rounds: one flat buffer per name, in a file per round.

`<folder>/client-<c>/<name>/round-<t>.safetensors`. Round t reads the newest file from before t, so
that a repeated round reads what it read the first time, in whichever process. A damaged file is
never passed over for an older one, which would change the run's results without a word; the
operator is told, and may remove it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fedmoe.adapter import Adapter
from fedmoe.errors import CheckpointError
from fedmoe.runs.round_files import CHECKPOINTS, DamagedError, RoundFiles

if TYPE_CHECKING:
    from fedmoe.adapter import Layout

KEPT = CHECKPOINTS + 2
"""Files per client: a repeated round needs the one before its own, also where a kill meets the
newest checkpoint half written, the one before is damaged, and the run resumes two rounds back."""
NO_FOLDER = (
    "this run's clients keep something between rounds (the strategy's own part, or what "
    "upload.error_feedback has not sent yet), and there is no folder for it here. On a Flower node "
    "name one: --node-config 'state=\"/path\"', or state in the run config, the same for all nodes "
    "that may get the same client's tasks"
)
CURE = (
    "Restore the file, or remove it: the client then continues from what it kept before, or from "
    "nothing, and the run's results differ from those without the damage"
)


def home_of(folder: Path | None, client: int, name: str) -> Path:
    """Return the folder in which a client keeps what is called `name`.

    Raises:
        CheckpointError: there is no folder for clients' state.
    """
    if folder is None:
        raise CheckpointError(NO_FOLDER)
    return folder / f"client-{client}" / name


def read_client_state(home: Path, before: int, layout: Layout) -> tuple[int, Adapter]:
    """Return the last round before `before` that a client took part in, and what it kept then.

    Round 0 and zeros if it took part in none.

    Raises:
        CheckpointError: the file is damaged, of another adapter, or was removed since.
    """
    files = _files(home)
    rounds = files.rounds()
    if not (earlier := [r for r in rounds if r < before]):
        if rounds and (since := _read(files, rounds[0], layout)[0]):
            raise CheckpointError(
                f"{home}: round {before} needs what was kept in round {since}; the oldest file is "
                f"of round {rounds[0]}. Start the run again in a new folder"
            )
        return 0, Adapter(layout, torch.zeros(layout.size))
    return earlier[-1], _read(files, earlier[-1], layout)[1]


def write_client_state(home: Path, round: int, before: int, values: Adapter) -> None:
    """Keep `values` after `round`; `before` is the round whose values went into them.

    Raises:
        CheckpointError: the file cannot be written; those before it stay.
    """
    _files(home).write(round, values.layout, {"values": values.flat}, before=before)


def _files(home: Path) -> RoundFiles:
    return RoundFiles(home, "round", KEPT)


def _read(files: RoundFiles, round: int, layout: Layout) -> tuple[int, Adapter]:
    """Return the round before that of a file, and the file's values."""
    try:
        tensors, about = files.read(round, layout)
    except DamagedError as error:
        raise CheckpointError(f"{error}. {CURE}") from error
    return about["before"], Adapter(layout, tensors["values"])
