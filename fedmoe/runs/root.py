"""The server's own local round, for a robust rule that trusts rows of the server's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fedmoe.data.files import LocalFiles
from fedmoe.data.wording import tokenize
from fedmoe.errors import DataError
from fedmoe.messages.records import Task
from fedmoe.runs.client_side import ClientSide

if TYPE_CHECKING:
    from fedmoe.messages.records import Update
    from fedmoe.rounds import ServerState
    from fedmoe.runs.server_side import ServerSide

ROOT, NUMBER = "root", 2**31
"""The server's name and number among clients, of which its random streams are made."""


def root_of(server: ServerSide) -> Callable[[ServerState], Update] | None:
    """Return who trains a round on the rule's root rows, in this process; None without any.

    It trains as a client of the tier with the most experts does.

    Raises:
        DataError: the file of the root rows cannot be read, or has none.
    """
    setup, e = server.setup, server.setup.experiment
    if not (path := e.robust_rule.root):
        return None
    table = LocalFiles(path=path)
    source, present, rows = table.table()
    examples, _ = table.usable(source, table.examples(source, present, rows, table.file()))
    if not examples:
        raise DataError(f"robust.root: {path} has no rows; a hundred are enough")
    _, tokens = tokenize(examples, setup.tokenizer, e.text, setup.model.form.name, "root rows")
    tier = max(setup.top_ks, key=lambda name: setup.top_ks[name])
    side = ClientSide(setup, {ROOT: tokens})

    def train(state: ServerState) -> Update:
        sent, rescaler = server.send(state.adapter, tier), state.rescalers[tier]
        top_k = setup.top_ks[tier]
        return side.train(Task(state.round + 1, NUMBER, tier, top_k, rescaler, sent, ROOT))

    return train
