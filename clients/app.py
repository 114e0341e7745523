"""The Flower ClientApp: it describes its node, and carries out tasks."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.about import about, allowed_modules, check_components, least_noise_of, own_clients
from clients.messages import buffer, checksum, parsed, text, update_content, words
from clients.own_rows import reported
from clients.worker_calls import answer, idle_seconds_of
from clients.worker_frames import Order
from fedmoe.errors import FedMoEError
from fedmoe.privacy.masks.identity import UNSIGNED, owner_of
from fedmoe.system.digests import code_digest

LOG = logging.getLogger(__name__)

app = ClientApp()


@app.query()
def hello(message: Message, context: Context) -> Message:
    """Reply with a description of this node; the server decides whether it fits. See `about`."""
    try:
        check_components(message.content.config_records["config"], context.node_config)
        owner_of(*key_files(context))
        least_noise_of(context.node_config)
        reply = words(**about(context.node_config, data_of(message.content)))
    except FedMoEError as error:
        reply = words(reason=str(error))
    return replied(message, reply)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Reply with the update of the task in `message`, or with the reason why there is none.

    Errors that are not the user's are left to Flower, which reports them as the reply's error.
    """
    try:
        check_code(message.content)
        reply = carry_out(message.content, context, message.metadata.ttl)
    except FedMoEError as error:
        reply = words(reason=str(error))
    return replied(message, reply)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Reply with a client's scores on its own rows, or with the reason why there are none."""
    return train(message, context)


def data_of(content: RecordDict) -> dict[str, object]:
    """Return what the server tells of the experiment's data."""
    return parsed(content.config_records["config"].get("data") or "{}")


def replied(message: Message, reply: RecordDict) -> Message:
    """Add the request's nonce to a reply, which shows that it answers that request alone."""
    reply.config_records["config"]["nonce"] = text(message.content, "nonce")
    return Message(reply, reply_to=message)


def carry_out(content: RecordDict, context: Context, ttl: float) -> RecordDict:
    """Carry out a task where the model is held, and return its update; see `worker_calls`.

    `ttl` is how long the server waits, in seconds since it sent the task.
    """
    folder = state_folder(context, text(content, "run"))
    data, idle_seconds = data_of(content), idle_seconds_of(context.node_config)
    masks = str(content.config_records["config"].get("masks", ""))
    key, known = key_files(context)
    if masks and not idle_seconds:
        raise FedMoEError(
            "node config: worker_idle_seconds=0 leaves no process that has a client's keys from "
            "one step of secure_aggregation to the next; give it some"
        )
    if '"advertise"' in masks and not known:
        LOG.warning(UNSIGNED)
    order = Order(
        experiment=text(content, "experiment"),
        overrides=str(context.node_config.get("overrides", "")),
        scalars=text(content, "scalars"),
        checksum=checksum(content),
        own=own_clients(context.node_config),
        state=str(folder.absolute()) if folder else "",
        deadline_seconds=ttl,
        allow=allowed_modules(context.node_config),
        data=str(context.node_config.get("data", "")),
        digest=str(data.get("digest", "")),
        report=reported(context.node_config),
        split=str(content.config_records["config"].get("split", "")),
        masks=masks,
        key=key,
        known=known,
        home=str(context.node_config.get("state", "")),
        least_noise=least_noise_of(context.node_config),
    )
    task_seconds = float(context.run_config.get("task_seconds", 3600))
    return update_content(answer(order, buffer(content), idle_seconds, task_seconds))


def key_files(context: Context) -> tuple[str, str]:
    """Return the paths of this owner's key and of all owners' public keys; see `owner_of`."""
    names = ("signing_key", "known_keys")
    key, known = (str(context.node_config.get(name, "")) for name in names)
    return key, known


def check_code(content: RecordDict) -> None:
    """Refuse to work for a server that runs other code: the results could not be repeated.

    Ray's workers search the folder in which the SuperLink was started before the app bundle, so a
    stray `clients/` there would run in place of the bundle's.
    """
    here, there = code_digest(Path(__file__).parent), text(content, "code")
    if here != there:
        raise FedMoEError(
            f"this node runs code {here}, the server {there}; install the same fedmoe on both, "
            "and restart the SuperLink from a folder that holds no other `clients/`"
        )


def state_folder(context: Context, run: str) -> Path | None:
    """Return where clients keep what they need in a later round: `state`/<the run's id>.

    Nodes that may get the same client's tasks must share the folder. The id is fedmoe's own:
    Flower's changes when a run is resumed.

    Raises:
        FedMoEError: the id cannot be the name of a folder.
    """
    if not re.fullmatch(r"[A-Za-z0-9_]{1,40}", run):
        raise FedMoEError(f"run is {run[:60]!r}; expected letters and digits")
    named = str(context.node_config.get("state", "") or context.run_config.get("state", ""))
    return Path(named) / run if named else None
