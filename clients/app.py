"""The Flower ClientApp: says who it is, and carries out tasks."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.messages import buffer, text, update_content, words
from fedmoe.code import code_digest
from fedmoe.errors import FedMoEError

app = ClientApp()


@app.query()
def hello(message: Message, context: Context) -> Message:
    """Reply with the clients whose data lies here; empty means: any client's task will do."""
    try:
        check_code(message.content)
        reply = words(clients=",".join(str(c) for c in own_clients(context)))
    except FedMoEError as error:
        reply = words(reason=str(error))
    return Message(reply, reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Reply with the update of the task in `message`, or with the reason why there is none.

    Errors that are not the user's are left to Flower, which reports them as the reply's error.
    """
    try:
        check_code(message.content)
        reply = carry_out(message.content, context)
    except FedMoEError as error:
        reply = words(reason=str(error))
    return Message(reply, reply_to=message)


def carry_out(content: RecordDict, context: Context) -> RecordDict:
    """Task in, update out."""
    from clients.resident import resident
    from fedmoe.wire import Message as Packed

    overrides = str(context.node_config.get("overrides", ""))
    prepared = resident(text(content, "experiment"), overrides)
    task = prepared.read_task(Packed(text(content, "scalars"), buffer(content)))
    if (own := own_clients(context)) and task.client not in own:
        raise FedMoEError(f"client {task.client} is not one of this node's: {own}")
    folder = state_folder(context, text(content, "run"))
    return update_content(replace(prepared, state_folder=folder).answer(task))


def check_code(content: RecordDict) -> None:
    """Refuse to work for a server that runs other code: its results could not be repeated.

    Ray's workers put the folder in which the SuperLink was started ahead of the app bundle, so a
    stray `clients/` there would run in place of the bundle's.
    """
    here, there = code_digest(Path(__file__).parent), text(content, "code")
    if here != there:
        raise FedMoEError(
            f"this node runs code {here}, the server {there}; install the same fedmoe on both, "
            "and restart the SuperLink from a folder that holds no other `clients/`"
        )


def state_folder(context: Context, run: str) -> Path | None:
    """Where clients keep what they need in a later round: `state`, with the run's id behind it.

    A client's tasks must find its files: nodes that share its tasks share the folder. The id is
    fedmoe's own, not Flower's, which is another one after an interruption.

    Raises:
        FedMoEError: the id is no name of a folder.
    """
    if not re.fullmatch(r"\w{1,40}", run):
        raise FedMoEError(f"run is {run[:60]!r}; expected letters and digits")
    named = str(context.node_config.get("state", "") or context.run_config.get("state", ""))
    return Path(named) / run if named else None


def own_clients(context: Context) -> list[int]:
    """The clients that the node's config names, as `clients=3` or `clients="0,3"`."""
    named = str(context.node_config.get("clients", ""))
    try:
        return sorted(int(number) for number in named.split(",") if number.strip())
    except ValueError:
        raise FedMoEError(
            f"node config: clients is {named!r}; expected numbers, such as 0,3"
        ) from None
