"""Masked sums on a node: its clients' keys, which its worker has in memory from step to step."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from clients.worker_frames import Order
from fedmoe.config import Experiment
from fedmoe.errors import FedMoEError, WireError
from fedmoe.messages.codec import sealed
from fedmoe.messages.records import Message
from fedmoe.privacy.masks.identity import owner_of
from fedmoe.privacy.masks.party import Advert, Refused, Reveal
from fedmoe.privacy.masks.settings import SecureAggregation, expected_clients
from fedmoe.privacy.masks.steps import Parties
from fedmoe.privacy.masks.wire import (
    Request,
    advert_values,
    read_request,
    refused_text,
    reveal_text,
    shares_text,
)
from fedmoe.runs.client_side import ClientSide
from fedmoe.runs.vectors import vector_at_client

if TYPE_CHECKING:
    from fedmoe.messages.records import Task
    from fedmoe.privacy.vector import Vector

FEW = 8
"""Experiments whose rounds may be under way in one process."""


@lru_cache(maxsize=FEW)
def parties_of(settings: SecureAggregation, expected: int | None, experiment: str) -> Parties:
    """Return this process's clients in their rounds of an experiment: always the same object."""
    return Parties(settings, expected)


def parties_for(order: Order, e: Experiment) -> Parties:
    """Return the same for the experiment of an order."""
    return parties_of(e.secure_aggregation, expected_clients(e), order.experiment)


def answer_step(order: Order, experiment: Experiment) -> Message:
    """Return a client's answer to a step that needs neither model nor rows.

    Raises:
        FedMoEError: the step is damaged, not for this node, or would give the client away.
    """
    if experiment.secure_aggregation is None:
        raise FedMoEError("a step of masked sums came; this experiment has no secure_aggregation")
    request, client = read_request(order.masks), client_of(order.scalars)
    if order.own and client not in order.own:
        raise FedMoEError(f"client {client} is not one of this node's, {order.own}")
    owner = owner_of(order.key, order.known) if request.step == "advertise" else None
    answer = parties_for(order, experiment).answer(client, request, owner)
    if isinstance(answer, Advert):
        text = json.dumps(advert_values(answer))
    elif isinstance(answer, Refused):
        text = refused_text(answer)
    else:
        text = reveal_text(answer) if isinstance(answer, Reveal) else shares_text(answer)
    return sealed(Message(text, b""))


def client_of(scalars: str) -> int:
    """Return the client that a step is for.

    Raises:
        WireError: it names none.
    """
    try:
        found = json.loads(scalars)["client"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise WireError(f"a step names no client: {error!r:.80}") from error
    if type(found) is not int or found < 0:
        raise WireError(f"a step's client is {found!r:.60}; expected its number")
    return found


@dataclass(frozen=True, eq=False)
class MaskedSide(ClientSide):
    """Answers a task with a masked vector, and with nothing else of what it has done."""

    request: Request | None = None
    parties: Parties | None = None
    least_noise: float = 0.0

    def answer(self, task: Task) -> Message:
        """Carry out a task and return its vector under the masks of this round.

        Raises:
            FedMoEError: the client has no keys for it, or the server asks for another vector than
                the experiment does, or for less noise than the node's config does.
        """
        request, parties = self.request, self.parties
        assert request is not None
        assert parties is not None
        assert request.bounds is not None
        party = parties.party(task.client, request)
        known = len(party.adverts), party.threshold
        vector = vector_at_client(self.setup, task, request.bounds, *known)
        check_noise(vector, self.least_noise)
        update = self.train(task)
        masked = parties.mask(task.client, request, vector.of(update))
        # A plan of the node's own needs the k; it goes no further.
        return Message(json.dumps({"top_k": update.top_k}), masked.view("u1").data)


def check_noise(vector: Vector, least: float) -> None:
    """Refuse a vector with less noise than this node insists on."""
    noise = vector.private.mechanism.noise_multiplier if vector.private else 0.0
    if noise < least:
        raise FedMoEError(
            f"the experiment adds noise {noise:g} to a sum (privacy.noise_multiplier), and this "
            f"node's least_noise is {least:g}; lower it in its node config, or ask for more"
        )


def masked_side(order: Order, client: ClientSide) -> ClientSide:
    """Return the client side that an order is for: one that masks, if the experiment says so.

    Raises:
        FedMoEError: the server asks for an update in clear in a run that masks them, or from an
            owner who knows the others' keys.
    """
    masks = client.setup.experiment.secure_aggregation is not None
    if masks and order.masks:
        parties = parties_for(order, client.setup.experiment)
        request = read_request(order.masks)
        own = {"parties": parties, "least_noise": order.least_noise}
        return MaskedSide(**vars(client), request=request, **own)
    if masks or order.masks:
        raise FedMoEError(
            "the experiment says secure_aggregation, and the server asks for an update in clear"
            if masks
            else "a step of masked sums came; this experiment has no secure_aggregation"
        )
    if order.known:
        raise FedMoEError(
            "this node's known_keys say that its updates are masked, and the experiment has no "
            "secure_aggregation; remove known_keys from its node config to send them in clear"
        )
    if order.least_noise:
        raise FedMoEError(
            f"this node's least_noise, {order.least_noise:g}, says that it adds noise itself, and "
            "the experiment has no secure_aggregation; remove it from its node config"
        )
    return client
