"""A client's side of one round of masked sums: five messages, and secrets that end with the round.

1. `advertise`: two public keys, signed.
2. `share`: shares of its secrets, each sealed for one neighbour, who helps if it is gone.
3. `open`: whether all that neighbours sealed for it is usable, before anybody trains.
4. `mask`: its vector under a mask of its own and one with each neighbour that the other takes away.
5. `reveal`: for a neighbour whose vector arrived the share of its own mask, for one that is gone
   the share of its key: never both, else its vector could be unmasked.

At `share` and `open` it names the neighbours whose keys or shares are unusable (`Refused`).

Source: Bonawitz et al. 2017 (doi 10.1145/3133956.3133982, Figure 4, without the round that makes
all agree on who is there); neighbours instead of everybody: Bell et al. 2020 (SecAgg+).
So the server is trusted to follow the protocol, not to look away: it may keep all it sees.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from fedmoe.errors import WireError
from fedmoe.privacy.masks.keys import KeyPair, add_mask, seal, unseal
from fedmoe.privacy.masks.shares import split

SEED_BYTES = 16
SECRET_BYTES = 32
COMMITMENT_BYTES = 32


class Identity(Protocol):
    """Signs for one owner, and knows the others' public keys; see `identity`."""

    @property
    def name(self) -> str: ...
    def sign(self, text: bytes) -> bytes: ...
    def verify(self, signer: str, text: bytes, signature: bytes) -> bool: ...


@dataclass(frozen=True)
class Advert:
    """The public keys of a client for one round, and its signature on them."""

    sealing: bytes
    masking: bytes
    commitment: bytes
    """To the seed of its own mask: shows the server whether shares of it were changed."""
    signature: bytes = b""
    signer: str = ""
    """The owner whose key has signed."""

    def signed_text(self, about: bytes, client: int) -> bytes:
        """Return what is signed: the keys, for whom, and for which round of which run."""
        parts = [b"fedmoe masks", about, str(client).encode()]
        return b"|".join([*parts, self.sealing, self.masking, self.commitment])


@dataclass(frozen=True)
class Reveal:
    """A client's shares of its neighbours' secrets, by neighbour."""

    seeds: dict[int, bytes]
    """Of those whose vectors arrived: of the masks of their own."""
    keys: dict[int, bytes]
    """Of those that are gone: of their masking keys."""


@dataclass(frozen=True)
class Refused:
    """The neighbours with whom a client shares no masks: their keys or shares are unusable."""

    clients: tuple[int, ...] = ()


@dataclass(eq=False)
class Party:
    """A client in one round; its methods are called once each, in their order."""

    about: bytes
    """Names the run and the round, so that nothing of one serves in another."""
    client: int
    threshold: int = 2
    """Shares that give a secret back, of one client's neighbours."""
    identity: Identity | None = None
    sealing: KeyPair = field(default_factory=KeyPair)
    masking: KeyPair = field(default_factory=KeyPair)
    seed: bytes = field(default_factory=lambda: os.urandom(SEED_BYTES))
    adverts: dict[int, Advert] = field(default_factory=dict)
    held: dict[int, bytes] = field(default_factory=dict)
    """Opened shares by neighbour: of its seed, then of its masking key."""
    pairs: dict[int, bytes] = field(default_factory=dict)
    """The key of the mask with each neighbour."""
    masked: bool = False

    def advertise(self) -> Advert:
        """Return this client's public keys."""
        plain = Advert(self.sealing.public, self.masking.public, commitment(self.seed, self.about))
        if (me := self.identity) is None:
            return plain
        signature = me.sign(plain.signed_text(self.about, self.client))
        return replace(plain, signature=signature, signer=me.name)

    def share(self, adverts: Mapping[int, Advert]) -> dict[int, bytes] | Refused:
        """Return a sealed share of this client's secrets for each neighbour.

        Nothing is shared if a neighbour's key is none, or not signed by an owner that is known.

        Raises:
            WireError: too few neighbours or owners, this client among them, or a second call: one
                secret's shares must be of one polynomial.
        """
        if self.adverts:
            raise WireError("secrets that are shared already are not shared again")
        if self.client in adverts or len(adverts) < self.threshold:
            raise WireError(
                f"{len(adverts)} neighbours; expected {self.threshold} others at least: with fewer "
                "the sum would give single clients away"
            )
        signed = {c: a for c, a in adverts.items() if self._knows(c, a) and usable(a)}
        if refused := sorted(adverts.keys() - signed):
            return Refused(tuple(refused))
        self._check_owners(adverts)
        self.adverts = dict(sorted(adverts.items()))
        shares = split(self.seed + self.masking.secret, self.threshold, len(adverts))
        return {
            client: seal(self._sealing_key(client), share, self._way(self.client, client))
            for client, share in zip(self.adverts, shares, strict=True)
        }

    def open(self, sealed: Mapping[int, bytes]) -> Refused:
        """Open what neighbours sealed for this client, and return those whose share is unusable.

        Args:
            sealed: by neighbour; with one who sealed nothing there will be no mask.

        Raises:
            WireError: too few neighbours, or a second call.
        """
        if self.held or self.masked:
            raise WireError("shares that are opened already are not opened again")
        if len(sealed) < self.threshold or not sealed.keys() <= self.adverts.keys():
            raise WireError(f"shares of {len(sealed)} neighbours; expected {self.threshold}")
        for client, text in sealed.items():
            try:
                share = unseal(self._sealing_key(client), text, self._way(client, self.client))
            except WireError:
                continue
            if len(share) == SEED_BYTES + SECRET_BYTES:
                self.held[client] = share
                public = self.adverts[client].masking
                self.pairs[client] = self.masking.agree(public, pair_text(self.about))
        return Refused(tuple(sorted(sealed.keys() - self.held)))

    def mask(self, vector: np.ndarray) -> np.ndarray:
        """Mask a uint64 vector in place, and return it.

        Raises:
            WireError: too few neighbours' shares were opened, or a second call.
        """
        if self.masked:
            raise WireError("a second vector under the same masks would give away a difference")
        if len(self.held) < self.threshold:
            raise WireError(f"shares of {len(self.held)} neighbours; expected {self.threshold}")
        self.masked = True
        add_mask(vector, own_mask_key(self.seed, self.about), 1)
        for client, key in self.pairs.items():
            add_mask(vector, key, sign_of(self.client, client))
        return vector

    def reveal(self, arrived: Collection[int]) -> Reveal:
        """Return shares of neighbours' secrets, now that it is known whose vectors arrived.

        Raises:
            WireError: too few vectors arrived, or this is a second call.
        """
        there = self.held.keys() & set(arrived)
        if len(there) < self.threshold or self.client not in arrived:
            raise WireError(
                f"{len(there)} neighbours' vectors arrived; below {self.threshold} nothing is "
                "revealed: the sum would be of too few"
            )
        held, self.held = self.held, {}
        return Reveal(
            {client: held[client][:SEED_BYTES] for client in sorted(there)},
            {c: share[SEED_BYTES:] for c, share in sorted(held.items()) if c not in there},
        )

    def _knows(self, client: int, advert: Advert) -> bool:
        """Return whether an owner that this one knows has signed; yes if it knows nobody's key."""
        text = advert.signed_text(self.about, client)
        me = self.identity
        return me is None or me.verify(advert.signer, text, advert.signature)

    def _check_owners(self, adverts: Mapping[int, Advert]) -> None:
        """Refuse neighbours of fewer owners than the threshold."""
        if (me := self.identity) is None:
            return
        owners = {advert.signer for advert in adverts.values()} - {me.name}
        if len(owners) < self.threshold:
            raise WireError(
                f"{len(owners)} other owners have signed; expected {self.threshold}: an owner with "
                "several clients hides nobody"
            )

    def _sealing_key(self, client: int) -> bytes:
        return self.sealing.agree(self.adverts[client].sealing, b"shares|" + self.about)

    def _way(self, sender: int, receiver: int) -> bytes:
        return b"|".join([self.about, str(sender).encode(), str(receiver).encode()])


def usable(advert: Advert) -> bool:
    """Return whether somebody can have an advert's keys: a trial exchange with each."""
    trial = KeyPair()
    try:
        return all(trial.agree(key, b"trial") for key in (advert.sealing, advert.masking))
    except WireError:
        return False


def commitment(seed: bytes, about: bytes) -> bytes:
    """Return what fixes a seed of 16 random bytes in a round, and tells nothing of it."""
    return hashlib.sha256(b"|".join([b"commitment", about, seed])).digest()


def pair_text(about: bytes) -> bytes:
    """Return the purpose of a pair's mask in a round."""
    return b"mask|" + about


def own_mask_key(seed: bytes, about: bytes) -> bytes:
    """Return the key of a client's own mask."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(hashes.SHA256(), SECRET_BYTES, salt=None, info=b"own|" + about).derive(seed)


def sign_of(client: int, other: int) -> int:
    """Return 1 for the one of a pair that adds their mask, -1 for the one that takes it away."""
    return 1 if client < other else -1
