r"""Error feedback: what a client's compression left out is added to its next update.

$$p_t = \Delta_t + e_{t-1}, \qquad \hat p_t = \mathrm{sent}(p_t), \qquad e_t = p_t - \hat p_t$$

So the sum of what was sent over all rounds, and the last residual $e_t$, is that of all deltas but
for rounding. Nothing is sent for an expert that no token reached this round: its residual stays.

A residual is part of the client's state (`client_state`), so that a repeated round reads the same
one. An update that is lost on its way counts as sent, and is lost as without error feedback.

Source: Seide et al. 2014 (Interspeech); Karimireddy et al. 2019 (arXiv:1901.09847, Alg. 2). Theirs
is the residual of gradient steps, ours of the deltas of whole local rounds.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedmoe.adapter import keep_untouched
from fedmoe.errors import WireError
from fedmoe.messages.codec import pack_update, unpack_update
from fedmoe.messages.validation import Limits
from fedmoe.runs.client_state import home_of, read_client_state, write_client_state

if TYPE_CHECKING:
    from fedmoe.messages.compression import Compression
    from fedmoe.messages.records import Message, Task, Update


def pack_with_residual(
    update: Update, task: Task, compression: Compression, folder: Path | None
) -> Message:
    """Pack an update and what its client still owes; write down what is left out.

    Raises:
        CheckpointError: there is no folder, or the residual before this round is damaged or gone.
        WireError: the update is not finite; the residual stays as it was.
    """
    home, layout = home_of(folder, task.client, "residual"), update.delta.layout
    before, owed = read_client_state(home, task.round, layout)
    total = update.delta + owed
    if not total.flat.isfinite().all():
        raise WireError(f"client {task.client} diverged: its delta is not finite")
    whole = replace(update, delta=keep_untouched(total, update.counts))
    message = pack_update(whole, compression)
    # The client trusts its own counts; the server checks how many there may be.
    limits = Limits(per_token=lambda _: (0, layout.num_experts), merges=update.merged is not None)
    sent = unpack_update(message, layout, task, compression, learns_rescaler=True, limits=limits)
    write_client_state(home, task.round, before, total - sent.delta)
    return message
