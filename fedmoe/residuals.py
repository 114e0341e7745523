r"""Error feedback: what a client's compression left out is added to its next update.

$$p_t = \Delta_t + e_{t-1}, \qquad \hat p_t = \mathrm{sent}(p_t), \qquad e_t = p_t - \hat p_t$$

So what was sent over all rounds, and the last residual $e_t$, sum to all deltas but for rounding.
Of an expert that no token reached this round nothing is sent: its residual waits, unchanged.

A residual is the only thing that a client keeps between rounds. It lies in a file per round,
`<folder>/client-<c>/round-<t>.safetensors`, written whole; round t reads the newest of the rounds
before t. So a round done again reads what it read the first time, in whichever process. An update
that is lost on its way is lost, as without error feedback: it counts as sent.

Source: Seide et al. 2014 (Interspeech); Karimireddy et al. 2019 (arXiv:1901.09847, Alg. 2). Theirs
is the residual of gradient steps, ours of the deltas of whole local rounds.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fedmoe.adapter import Adapter, Layout, keep_untouched
from fedmoe.compression import Compression
from fedmoe.errors import CheckpointError, WireError
from fedmoe.report.atomic import write_bytes
from fedmoe.wire import Message, Task, Update, pack_update, unpack_update

KEPT = 2
"""Files per client: a round that is done again needs the one before its own."""
NO_FOLDER = (
    "upload.error_feedback keeps in a folder what a client has not sent yet, and there is none "
    "here. On a Flower node name one: --node-config 'state=\"/path\"', or state in the run config, "
    "the same for all nodes that may get the same client's tasks; or set upload.error_feedback "
    "to false"
)


def pack_with_residual(
    update: Update, task: Task, compression: Compression, folder: Path | None
) -> Message:
    """The update and what its client still owes as a message; what is left is written down.

    Raises:
        CheckpointError: there is no folder, or the residual before this round is damaged or gone.
        WireError: the update is not finite; the residual stays as it was.
    """
    if folder is None:
        raise CheckpointError(NO_FOLDER)
    home, layout = folder / f"client-{task.client}", update.delta.layout
    before, owed = read_residual(home, task.round, layout)
    total = update.delta + owed
    if not total.flat.isfinite().all():
        raise WireError(f"client {task.client} diverged: its delta is not finite")
    whole = replace(update, delta=keep_untouched(total, update.counts))
    message = pack_update(whole, compression)
    sent = unpack_update(message, layout, task, compression, learns_rescaler=True)
    write_residual(home, task.round, before, total - sent.delta)
    return message


def read_residual(home: Path, before: int, layout: Layout) -> tuple[int, Adapter]:
    """What a client owes from the rounds before `before`, and the last of them it took part in.

    Zero, from round 0, when it took part in none.

    Raises:
        CheckpointError: the file is damaged or of another adapter, or was cleared away since.
    """
    rounds = _rounds(home)
    if not (earlier := [r for r in rounds if r < before]):
        if rounds and (since := _read(home, rounds[0], layout)[0]):
            raise CheckpointError(
                f"{home}: round {before} needs the residual of round {since}; the oldest one kept "
                f"is of round {rounds[0]}. Start the run anew, in a folder of its own"
            )
        return 0, Adapter(layout, torch.zeros(layout.size))
    return earlier[-1], _read(home, earlier[-1], layout)[1]


def write_residual(home: Path, round: int, before: int, residual: Adapter) -> None:
    """Keep what is owed after `round`; `before` is the round whose residual went into it."""
    home.mkdir(parents=True, exist_ok=True)
    about = {"layout": residual.layout.digest, "before": str(before)}
    write_bytes(_path(home, round), save({"residual": residual.flat}, about))
    for old in _rounds(home)[:-KEPT]:
        _path(home, old).unlink(missing_ok=True)


def _read(home: Path, round: int, layout: Layout) -> tuple[int, Adapter]:
    """The round before that of a file, and the file's residual."""
    path = _path(home, round)
    try:
        with safe_open(path, "pt") as file:
            about, flat = file.metadata(), file.get_tensor("residual")
        if about["layout"] != layout.digest or flat.dtype != torch.float32:
            raise CheckpointError(f"{path}: a residual of another adapter")
        return int(about["before"]), Adapter(layout, flat)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, WireError) as error:
        raise CheckpointError(f"{path}: a damaged residual ({error})") from error


def _path(home: Path, round: int) -> Path:
    return home / f"round-{round}.safetensors"


def _rounds(home: Path) -> list[int]:
    """The rounds of which a residual is kept, in order."""
    names = (re.fullmatch(r"round-(\d+)\.safetensors", p.name) for p in home.glob("round-*"))
    return sorted(int(name[1]) for name in names if name)
