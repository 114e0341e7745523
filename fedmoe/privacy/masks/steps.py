"""A client's answers to the steps of masked sums; its keys stay in this process's memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fedmoe.errors import WireError
from fedmoe.privacy.masks.party import Advert, Identity, Party, Refused, Reveal
from fedmoe.privacy.masks.settings import SecureAggregation
from fedmoe.privacy.masks.wire import Request

NO_KEYS = (
    "client {client} has no keys for this step of {about}: its process was restarted meanwhile, or "
    "none lasts from step to step (worker_idle_seconds=0, Flower's simulation engine)"
)

Answer = Advert | Mapping[int, bytes] | Refused | Reveal


@dataclass(eq=False)
class Parties:
    """The clients of this process in their rounds, one round for each."""

    settings: SecureAggregation
    expected: int | None = None
    """Clients of a round by the experiment; None where it leaves that open."""
    parties: dict[int, Party] = field(default_factory=dict)

    def answer(self, client: int, request: Request, identity: Identity | None = None) -> Answer:
        """Return what a client answers to a step other than `mask`.

        Raises:
            WireError: it has no keys for it, or what it is sent would give it away.
        """
        if request.step == "advertise":
            party = Party(request.about.encode(), client, identity=identity)
            self.parties[client] = party
            return party.advertise()
        party = self.party(client, request)
        if request.step == "share":
            neighbours = len(request.adverts)
            if neighbours < (least := self.settings.least(self.expected)):
                raise WireError(
                    f"{neighbours} neighbours; by the experiment {least} at least: with fewer the "
                    "sum would tell more of each"
                )
            if request.threshold < (least := self.settings.threshold_of(neighbours)):
                raise WireError(
                    f"{request.threshold} of {neighbours} neighbours shall open this client's "
                    f"secrets; by the experiment {least} at least"
                )
            party.threshold = request.threshold
            return party.share(request.adverts)
        if request.step == "open":
            return party.open(request.sealed)
        del self.parties[client]
        return party.reveal(request.arrived)

    def mask(self, client: int, request: Request, vector: np.ndarray) -> np.ndarray:
        """Mask a client's vector in place, and return it.

        Raises:
            WireError: see `Party.mask`.
        """
        return self.party(client, request).mask(vector)

    def party(self, client: int, request: Request) -> Party:
        """Return a client's side of the round.

        Raises:
            WireError: it has none in this process.
        """
        party = self.parties.get(client)
        if party is None or party.about != request.about.encode():
            raise WireError(NO_KEYS.format(client=client, about=request.about), "failed")
        return party
