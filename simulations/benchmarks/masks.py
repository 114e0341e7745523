"""What secure aggregation costs a client and the server, by the adapter's size and neighbours.

Result: `masks.md`. A round's messages are real ones; the server's sum is not of real vectors,
whose values do not change its time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from fedmoe.privacy.masks.collector import Collector
from fedmoe.privacy.masks.fixed_point import Part, encode
from fedmoe.privacy.masks.party import Party, Refused
from fedmoe.privacy.masks.wire import advert_values, refused_text, reveal_text, shares_text
from simulations.benchmarks.measure import Options, Row, named

SIZES = (6_000_000, 592_000_000)
"""Bytes of an adapter in float32: a small one, and rank 16 at OLMoE-1B-7B's size."""
NEIGHBOURS = (2, 8, 20)
ABOUT = "run|1|benchmark"


def rows(options: Options) -> Iterator[Row]:
    """Yield, per size and number of neighbours, a client's and the server's time, and bytes."""
    for number in NEIGHBOURS:
        spent = min(met_in(number)[2] for _ in range(options.repeats))
        what, note = "masks, client, keys and shares", named("cryptography")
        yield Row(what, f"{number} neighbours", f"{1e3 * spent:.2g} ms", note=note)
    for size in (40_000,) if options.quick else SIZES:
        values = size // 4
        coded = seconds(options, size, partial(coding, values))
        yield Row("masks, client, rounding", f"{size / 1e6:g} MB", f"{coded:.2f} s")
        for number in NEIGHBOURS:
            setting = f"{size / 1e6:g} MB, {number} neighbours"
            note = named("cryptography")
            masking = seconds(options, size, partial(masking_of, values, number), reset=True)
            yield Row("masks, client, masking", setting, f"{masking:.2f} s", note=note)
            for gone in (0, 1):
                clients = number + 1
                spent = seconds(
                    options, size, partial(unmasking_of, values, number, gone), reset=True
                )
                what = f"masks, server, {clients} clients, {gone} gone"
                yield Row(what, setting, f"{spent:.2f} s", note=note)
            small = small_bytes(number)
            figure = f"{8 * values / 1e6:.4g} MB and {small / 1e3:.1f} kB up"
            yield Row("masks, client, bytes", setting, figure, note=f"in clear {size / 1e6:g} MB")


def seconds(
    options: Options, size: int, make: Callable[[], Callable[[], object]], reset: bool = False
) -> float:
    """Return the processor time of what `make` returns, the best of some; of a large one, once.

    With `reset` it is made anew each time: a round's secrets serve once.
    """
    step, found = make(), []
    for _ in range(1 if size == SIZES[-1] else options.repeats):
        started = time.thread_time()
        step()
        found.append(time.thread_time() - started)
        step = make() if reset and size != SIZES[-1] else step
    return min(found)


def coding(values: int) -> Callable[[], object]:
    """Return the rounding of a client's values to integers."""
    part, found = Part("changes", values, 1.0, 20), np.zeros(values)
    return lambda: encode([part], [found])


def met(number: int) -> tuple[Collector, dict[int, Party]]:
    """Return a round of `number` neighbours each, all of whom have opened the others' shares."""
    return met_in(number)[:2]


def met_in(number: int) -> tuple[Collector, dict[int, Party], float]:
    """Return the same, and client 0's processor time for its keys, its shares and the others'."""
    spent = 0.0

    def timed(client: int, step: Callable[..., Any], *given: Any) -> Any:
        nonlocal spent
        started = time.thread_time()
        answer = step(*given)
        spent += 0.0 if client else time.thread_time() - started
        return answer

    about, clients = ABOUT.encode(), range(number + 1)
    # Half of the neighbours: of two, too, one may leave here, to see what that costs.
    parties = {client: Party(about, client, number // 2) for client in clients}
    neighbours = {c: [other for other in clients if other != c] for c in clients}
    collector = Collector(about, neighbours, number // 2, 1)
    collector.adverts = {c: timed(c, p.advertise) for c, p in parties.items()}
    shared = {c: timed(c, p.share, collector.adverts_for(c)) for c, p in parties.items()}
    collector.sealed = shared
    for client, party in parties.items():
        timed(client, party.open, collector.sealed_for(client))
    return collector, parties, spent


def masking_of(values: int, number: int) -> Callable[[], object]:
    """Return the masking of one client's vector."""
    vector, (_, parties) = np.zeros(values, np.uint64), met(number)
    return lambda: parties[0].mask(vector)


def unmasking_of(values: int, number: int, gone: int) -> Callable[[], object]:
    """Return the unmasking of the sum of all clients but those that are gone."""
    collector, parties = met(number)
    staying = [*parties][gone:]
    for client in staying:
        collector.add(client, parties[client].mask(np.zeros(1, np.uint64)))
    collector.reveals = {client: parties[client].reveal(staying) for client in staying}
    collector.total = np.zeros(values, np.uint64)
    return collector.unmasked


def small_bytes(number: int) -> int:
    """Return the bytes that a client sends beside its vector; it gets about the same."""
    collector, parties = met(number)
    advert = json.dumps(advert_values(collector.adverts[0]))
    shares, opened = shares_text(collector.sealed[0]), refused_text(Refused())
    for client in parties:
        parties[client].mask(np.zeros(1, np.uint64))
    reveal = reveal_text(parties[0].reveal([*parties]))
    return len(advert) + len(shares) + len(opened) + len(reveal)
