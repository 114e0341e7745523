"""The steps' messages as JSON, checked: what a server asks of a client, and what it answers.

Bytes travel as hexadecimal text. A masked vector alone is a buffer, of little-endian uint64.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast, get_args

from fedmoe.errors import WireError
from fedmoe.privacy.masks.keys import KEY_BYTES, NONCE_BYTES
from fedmoe.privacy.masks.party import (
    COMMITMENT_BYTES,
    SECRET_BYTES,
    SEED_BYTES,
    Advert,
    Refused,
    Reveal,
)

Step = Literal["advertise", "share", "open", "mask", "reveal"]

MOST_CHARACTERS = 2**24
"""Of a message; a neighbour takes about 600."""
MOST_CLIENTS = 2**20
"""In one round: sums of so many still have steps of 2^-42 of a value's range."""
MOST_CLIENT = 2**31
LEAST, MOST = 1e-12, 1e12
"""Of a size that ranges follow from."""
SEALED_BYTES = NONCE_BYTES + SEED_BYTES + SECRET_BYTES + 16
"""Of a sealed share; the last 16 show that nobody changed it."""
MOST_SIGNATURE = 256
ABOUT = re.compile(r"[A-Za-z0-9_|-]{1,120}", re.ASCII)
SIGNER = re.compile(r"[A-Za-z0-9_.-]{0,60}", re.ASCII)
NUMBER = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)


@dataclass(frozen=True)
class Bounds:
    """Sizes of a round's vectors that the experiment leaves open; see `runs.vectors`."""

    num_clients: int
    """That may take part."""
    largest_change: float
    most_tokens: int
    clip: float
    """The bound on a client's change in this round, in a private run; else without effect."""
    top_ks: dict[int, int]
    """How many of the run's clients have each k, in a private run."""
    ranges: str = ""
    """The parts and their ranges in words: both sides must come to the same."""


@dataclass(frozen=True)
class Request:
    """A step that a client is asked to make."""

    step: Step
    about: str
    """Names the run, the round and the attempt at it."""
    adverts: dict[int, Advert] = field(default_factory=dict)
    """To share: of the client's neighbours."""
    threshold: int = 0
    """To share: how many of them shall give its secrets back."""
    sealed: dict[int, bytes] = field(default_factory=dict)
    """To open: what they sealed for it."""
    arrived: tuple[int, ...] = ()
    """To reveal: whose vectors arrived, among the client and its neighbours."""
    bounds: Bounds | None = None
    """To mask."""

    def text(self) -> str:
        """Return the request as JSON."""
        values: dict[str, Any] = {"step": self.step, "about": self.about}
        if self.step == "share":
            values["adverts"] = {c: advert_values(a) for c, a in self.adverts.items()}
            values["threshold"] = self.threshold
        elif self.step == "open":
            values["sealed"] = _hexes(self.sealed)
        elif self.step == "mask":
            assert self.bounds is not None
            values["bounds"] = asdict(self.bounds)
        elif self.step == "reveal":
            values["arrived"] = list(self.arrived)
        return json.dumps(values)


FIELDS: dict[str, set[str]] = {
    "advertise": set(),
    "share": {"adverts", "threshold"},
    "open": {"sealed"},
    "mask": {"bounds"},
    "reveal": {"arrived"},
}


def read_request(text: str) -> Request:
    """Return the request in a text.

    Raises:
        WireError: no server of ours sends it.
    """
    values = _values(text)
    step = values.get("step")
    if not isinstance(step, str) or step not in FIELDS:
        raise WireError(f"a step is {step!r:.60}; expected one of {', '.join(get_args(Step))}")
    _exactly(values, {"step", "about", *FIELDS[step]})
    about = values["about"]
    if not isinstance(about, str) or not ABOUT.fullmatch(about):
        raise WireError(f"a step is about {about!r:.60}; expected a run and a round")
    adverts = {c: advert_of(v) for c, v in by_client(values.get("adverts", {})).items()}
    sealed = _all_bytes(values.get("sealed", {}), SEALED_BYTES)
    if not _is_client(threshold := values.get("threshold", 0)):
        raise WireError(f"threshold is {threshold!r:.60}; expected a number of clients")
    arrived = _clients(values.get("arrived", []), "arrived")
    bounds = bounds_of(values["bounds"]) if "bounds" in values else None
    return Request(cast(Step, step), about, adverts, threshold, sealed, arrived, bounds)


def bounds_of(values: Any) -> Bounds:
    """Return checked bounds.

    Raises:
        WireError: a value is missing, or not a size that a round can have.
    """
    _exactly(values, {*Bounds.__dataclass_fields__})
    numbers = {"num_clients": (3, MOST_CLIENTS), "most_tokens": (1, 2**50)}
    for name, (least, most) in numbers.items():
        if type(values[name]) is not int or not least <= values[name] <= most:
            raise WireError(f"{name} is {values[name]!r:.60}; expected {least} to {most}")
    for name in ("largest_change", "clip"):
        if type(values[name]) is not float or not LEAST <= values[name] <= MOST:
            raise WireError(f"{name} is {values[name]!r:.60}; expected {LEAST:g} to {MOST:g}")
    if not isinstance(values["ranges"], str) or len(values["ranges"]) > 1000:
        raise WireError("ranges are no text of at most 1000 characters")
    top_ks = by_client(values["top_ks"])
    if not all(k and type(n) is int and 0 < n <= MOST_CLIENTS for k, n in top_ks.items()):
        raise WireError(f"top_ks are {top_ks!s:.60}; expected numbers of clients by k")
    return Bounds(**{**values, "top_ks": top_ks})


def advert_values(advert: Advert) -> dict[str, str]:
    """Return an advert's values for JSON."""
    return {n: v if isinstance(v, str) else v.hex() for n, v in vars(advert).items()}


def advert_of(values: Any) -> Advert:
    """Return a checked advert.

    Raises:
        WireError: it has no two keys, or a value too many.
    """
    _exactly(values, {*Advert.__dataclass_fields__})
    if not isinstance(signer := values["signer"], str) or not SIGNER.fullmatch(signer):
        raise WireError(f"a signer is {signer!r:.60}; expected letters, digits, '.', '_' or '-'")
    signature = values["signature"]
    if not isinstance(signature, str) or len(signature) > 2 * MOST_SIGNATURE:
        raise WireError("a signature is none")
    keys = {name: _bytes(values[name], KEY_BYTES) for name in ("sealing", "masking")}
    commitment = _bytes(values["commitment"], COMMITMENT_BYTES)
    return Advert(**keys, commitment=commitment, signature=_bytes(signature, None), signer=signer)


def read_advert(text: str) -> Advert:
    """Return the advert in an answer.

    Raises:
        WireError: no client of ours sends it.
    """
    return advert_of(_values(text))


def read_shares(text: str, neighbours: Collection[int]) -> dict[int, bytes] | Refused:
    """Return the sealed shares in an answer, one for each neighbour, or whom it refuses.

    Raises:
        WireError: no client of ours sends them.
    """
    if "refused" in (values := _values(text)):
        return read_refused(text, neighbours)
    shares = _all_bytes(values, SEALED_BYTES)
    if shares.keys() != {*neighbours}:
        raise WireError(f"{len(shares)} shares; expected one for each of {len(neighbours)}")
    return shares


def read_refused(text: str, neighbours: Collection[int]) -> Refused:
    """Return whom an answer refuses, among a client's neighbours.

    Raises:
        WireError: no client of ours sends it.
    """
    _exactly(values := _values(text), {"refused"})
    clients = _clients(values["refused"], "refused")
    if not {*clients} <= {*neighbours}:
        raise WireError(f"refused are {clients!s:.60}, which are no neighbours")
    return Refused(clients)


def refused_text(refused: Refused) -> str:
    """Return refused neighbours as JSON."""
    return json.dumps({"refused": refused.clients})


def reveal_text(reveal: Reveal) -> str:
    """Return revealed shares as JSON."""
    return json.dumps({"seeds": _hexes(reveal.seeds), "keys": _hexes(reveal.keys)})


def read_reveal(text: str, there: Collection[int], gone: Collection[int]) -> Reveal:
    """Return the revealed shares in an answer: seeds of those who are there, keys of the others.

    Raises:
        WireError: no client of ours sends them.
    """
    values = _values(text)
    _exactly(values, {"seeds", "keys"})
    seeds = _all_bytes(values["seeds"], SEED_BYTES)
    keys = _all_bytes(values["keys"], SECRET_BYTES)
    if seeds.keys() != {*there} or keys.keys() != {*gone}:
        raise WireError(
            f"shares of {len(seeds)} seeds and {len(keys)} keys; expected those of {len(there)} "
            f"neighbours that are there, and of {len(gone)} that are gone"
        )
    return Reveal(seeds, keys)


def shares_text(shares: Mapping[int, bytes]) -> str:
    """Return sealed shares as JSON."""
    return json.dumps(_hexes(shares))


def by_client(values: Any) -> dict[int, Any]:
    """Return values by client, whose number is their name in JSON.

    Raises:
        WireError: a name is no number, or there are too many.
    """
    if not isinstance(values, dict) or len(values) > MOST_CLIENTS:
        raise WireError(f"{type(values).__name__} of clients; expected values by client")
    if bad := [name for name in values if not NUMBER.fullmatch(name)]:
        raise WireError(f"a client is {bad[0]!r:.60}; expected its number")
    found = {int(name): value for name, value in values.items()}
    if not all(map(_is_client, found)):
        raise WireError(f"a client is {max(found)}; expected less than {MOST_CLIENT}")
    return found


def _values(text: str) -> dict[str, Any]:
    if len(text) > MOST_CHARACTERS:
        raise WireError(f"a step of {len(text)} characters; expected at most {MOST_CHARACTERS}")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WireError(f"a step is not JSON: {error!s:.100}") from error
    if not isinstance(values, dict):
        raise WireError("a step is no JSON object")
    return values


def _exactly(values: Any, names: set[str]) -> None:
    if not isinstance(values, dict) or {*values} != names:
        found = sorted(values) if isinstance(values, dict) else type(values).__name__
        raise WireError(f"a step has {found!s:.200}; expected {', '.join(sorted(names)) or 'none'}")


def _clients(values: Any, what: str) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(map(_is_client, values)):
        raise WireError(f"{what} are {values!r:.60}; expected numbers of clients")
    return tuple(values)


def _is_client(value: Any) -> bool:
    return type(value) is int and 0 <= value < MOST_CLIENT


def _bytes(value: Any, length: int | None) -> bytes:
    """Return the bytes of a hexadecimal text, of a length if one is given."""
    try:
        found = bytes.fromhex(value) if value.isascii() else None
    except (AttributeError, ValueError):
        found = None
    if found is None or (length is not None and len(found) != length):
        raise WireError(f"bytes are {value!r:.60}; expected {length or 'some'} in hexadecimal")
    return found


def _all_bytes(values: Any, length: int) -> dict[int, bytes]:
    return {client: _bytes(value, length) for client, value in by_client(values).items()}


def _hexes(values: Mapping[int, bytes]) -> dict[int, str]:
    return {client: value.hex() for client, value in values.items()}
