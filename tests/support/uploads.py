"""Updates of a small adapter, with experts that no token reached, for tests of what is sent."""

import torch
from hypothesis import strategies as st

from fedmoe.adapter import Adapter, Layout, keep_untouched
from fedmoe.messages.records import Task, Update

LAYERS, EXPERTS, TOKENS, TOP_K = 2, 4, 7, 2
LAYOUT = Layout.of(
    [
        ("0.up.A", (EXPERTS, 2, 6), 0),
        ("0.up.B", (EXPERTS, 5, 2), 0),
        ("1.up.A", (EXPERTS, 2, 6), 1),
        ("1.up.B", (EXPERTS, 5, 2), 1),
        ("0.gate.shift", (EXPERTS, 3), None),
        ("q.A", (2, 6), None),
        ("q.B", (5, 2), None),
    ],
    LAYERS,
    EXPERTS,
    2,
    4.0,
)


def deltas_of(seed):
    """Values of many sizes, zeros of both signs and ties among them."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randn(LAYOUT.size, generator=generator)
    flat *= 10.0 ** torch.randint(-6, 3, flat.shape, generator=generator)
    kind = torch.randint(0, 12, flat.shape, generator=generator)
    flat[kind == 0], flat[kind == 1], flat[kind == 2], flat[kind == 3] = 0.0, -0.0, 0.5, -0.5
    return Adapter(LAYOUT, flat)


def counts_of(chosen):
    """TOKENS tokens of every layer, each to TOP_K of the layer's `chosen` experts in turn."""
    counts = torch.zeros(LAYERS, EXPERTS, dtype=torch.int64)
    for layer, experts in enumerate(chosen):
        for token in range(TOKENS):
            for choice in range(TOP_K):
                counts[layer, experts[(token + choice) % len(experts)]] += 1
    return counts


def update_of(delta, counts, **changes):
    """The update of a client whose delta, where nothing was routed, is set to zero."""
    fields = {
        "round": 1,
        "client": 5,
        "tier": "low",
        "top_k": TOP_K,
        "rescaler": torch.ones(LAYERS),
        "delta": keep_untouched(delta, counts),
        "counts": counts,
        "examples": 11,
        "tokens": TOKENS,
        "steps": 4,
        "loss_before": 2.5,
        "loss_after": 1 / 3,
        "seconds": 0.25,
        "peak_bytes": 2**33,
    }
    return Update(**(fields | changes))


def task_for(update):
    """The task that an update answers."""
    adapter = Adapter(LAYOUT, torch.zeros(LAYOUT.size))
    return Task(update.round, update.client, update.tier, update.top_k, torch.ones(LAYERS), adapter)


DELTAS = st.integers(0, 2**31).map(deltas_of)
COUNTS = st.lists(
    st.lists(st.integers(0, EXPERTS - 1), min_size=TOP_K, max_size=EXPERTS, unique=True),
    min_size=LAYERS,
    max_size=LAYERS,
).map(counts_of)
UPDATES = st.builds(update_of, DELTAS, COUNTS)
