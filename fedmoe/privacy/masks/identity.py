"""An owner's signature, by the EC key (P-384) that its node has for Flower anyway."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedmoe.errors import FedMoEError
from fedmoe.system.extras import require
from fedmoe.system.files import expanded

UNSIGNED = (
    "secure aggregation: this node signs nothing and knows no other owner's key, so the server "
    "could invent neighbours and learn a single update. Set signing_key and known_keys in its node "
    "config"
)


@dataclass(frozen=True, eq=False)
class Owner:
    """Signs for one owner, and knows the public keys of all; see `party.Identity`."""

    name: str
    key: Any
    known: Mapping[str, Any] = field(repr=False)
    """Public keys by owner."""

    def sign(self, text: bytes) -> bytes:
        """Return this owner's signature on a text: ECDSA with SHA-384."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        return self.key.sign(text, ec.ECDSA(hashes.SHA384()))

    def verify(self, signer: str, text: bytes, signature: bytes) -> bool:
        """Return whether the text has the signature of this signer, whose key is known."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        if signer not in self.known:
            return False
        try:
            self.known[signer].verify(signature, text, ec.ECDSA(hashes.SHA384()))
        except InvalidSignature:
            return False
        return True


def owner_of(key: str, known: str) -> Owner | None:
    """Return who signs on this node; None if it signs nothing.

    Args:
        key: the path of its private key, as OpenSSH writes it; `signing_key` in the node config.
        known: the path of a file with all owners' public keys, a line each, as in Flower's `.pub`
            files: kind, key, name; `known_keys`.

    Raises:
        FedMoEError: one of the two is missing, or cannot be read, or the key is not known.
    """
    if not key and not known:
        return None
    if not key or not known:
        there, missing = ("signing_key", "known_keys") if key else ("known_keys", "signing_key")
        raise FedMoEError(f"node config: {there} is of no use without {missing}")
    require("secure_aggregation", "privacy", "cryptography")
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    owners = read_owners(known)
    try:
        private = load_ssh_private_key(expanded(key).read_bytes(), None)
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise FedMoEError(f"node config: signing_key {key}: {error}") from error
    names = [name for name, public in owners.items() if public == private.public_key()]
    if not names:
        raise FedMoEError(
            f"node config: signing_key {key} is of no owner in known_keys {known}, which has "
            f"{', '.join(owners)[:200] or 'none'}; each node's file must have all public keys"
        )
    return Owner(names[0], private, owners)


def read_owners(path: str) -> dict[str, Any]:
    """Return the public keys in a file, by owner.

    Raises:
        FedMoEError: it cannot be read, or two lines have one name or one key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    owners: dict[str, Any] = {}
    try:
        for line in filter(None, map(str.strip, expanded(path).read_text("ascii").splitlines())):
            _, _, name = line.split(" ")
            public = load_ssh_public_key(line.encode())
            if not isinstance(public, EllipticCurvePublicKey):
                raise ValueError(f"{name}'s key is on no elliptic curve")
            if name in owners or public in owners.values():
                raise ValueError(f"{name} or its key is there twice")
            owners[name] = public
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise FedMoEError(
            f"node config: known_keys {path}: {error}; expected a line for each owner: kind of "
            "key, key, name"
        ) from error
    return owners
