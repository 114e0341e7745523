"""The weighted mean compiled by numba gives the bits of the one in torch, whatever the numbers."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmoe.adapter import Adapter, Layout
from fedmoe.aggregation import passes
from fedmoe.aggregation.blocks import BLOCK_VALUES
from fedmoe.aggregation.streaming import Weights, weighted_mean
from fedmoe.messages.records import Update

numba = pytest.importorskip(
    "numba", reason="NOT COMPARED: numba is not installed; `pip install fedmoe[fast]`"
)

LAYERS, EXPERTS = 2, 3
TENSORS = {
    "usual": [("l0.A", (EXPERTS, 2, 9), 0), ("l1.B", (EXPERTS, 9, 2), 1), ("q.A", (2, 5), None)],
    "single values": [("l0.A", (EXPERTS, 1, 1), 0), ("q.A", (1, 1), None)],
    "rows that are cut": [("l1.A", (EXPERTS, 1, BLOCK_VALUES + 3), 1)],
    "nothing for a layer": [("l1.A", (EXPERTS, 17, 1), 1)],
    "nothing": [],
}
LAYOUTS = {name: Layout.of(t, LAYERS, EXPERTS, 2, 4.0) for name, t in TENSORS.items()}
SMALLEST, LARGEST = 2.0**-149, (2 - 2**-23) * 2.0**127
ODD = torch.tensor([0.0, -0.0, SMALLEST, -SMALLEST, 3 * SMALLEST, LARGEST, -LARGEST, 1 / 3])
WEIGHTS = st.sampled_from([0.0, 0.0, 1.0, 1 / 3, 1e-12, 0.1, 7.0, 2.0**53 - 1, 1e30])


def values(size, generator):
    """Usual numbers, a third of them replaced by odd ones."""
    usual = torch.randn(size, generator=generator)
    odd = ODD[torch.randint(len(ODD), (size,), generator=generator)]
    return torch.where(torch.rand(size, generator=generator) < 0.3, odd, usual)


def update_of(layout, delta):
    return Update(
        round=1,
        client=0,
        tier="t",
        top_k=1,
        rescaler=torch.ones(LAYERS),
        delta=Adapter(layout, delta),
        counts=torch.ones(LAYERS, EXPERTS, dtype=torch.int64),
        examples=1,
        tokens=1,
        steps=1,
        loss_before=1.0,
        loss_after=1.0,
        seconds=1.0,
        peak_bytes=1,
    )


@st.composite
def rounds(draw):
    """A global adapter, one to nine updates, and weights of which many are zero."""
    layout = draw(st.sampled_from(list(LAYOUTS.values())))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    num_updates = draw(st.integers(1, 9))
    updates = [update_of(layout, values(layout.size, generator)) for _ in range(num_updates)]
    rows = [[draw(WEIGHTS) for _ in range(LAYERS * EXPERTS + 1)] for _ in updates]
    weights = {
        id(u): Weights(torch.tensor(row[:-1], dtype=torch.float64).view(LAYERS, EXPERTS), row[-1])
        for u, row in zip(updates, rows, strict=True)
    }
    return Adapter(layout, values(layout.size, generator)), updates, weights


def bits(adapter):
    return adapter.flat.view(torch.int32)


def in_torch(monkeypatch, *arguments):
    with monkeypatch.context() as patch:
        patch.setattr(passes, "kernels", lambda: None)
        return weighted_mean(*arguments)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(rounds())
def test_the_same_bits_as_in_torch(monkeypatch, round_):
    adapter, updates, weights = round_
    arguments = adapter, updates, lambda update: weights[id(update)]
    assert isinstance(passes.passes(adapter.layout), passes.Compiled)
    assert torch.equal(bits(weighted_mean(*arguments)), bits(in_torch(monkeypatch, *arguments)))


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_any_number_of_threads_gives_the_same_bits(monkeypatch, threads):
    layout = LAYOUTS["usual"]
    generator = torch.Generator().manual_seed(threads)
    adapter, *deltas = (values(layout.size, generator) for _ in range(6))
    weights = Weights(torch.rand(LAYERS, EXPERTS, generator=generator).double(), 0.7)
    arguments = Adapter(layout, adapter), [update_of(layout, d) for d in deltas], lambda _: weights
    alone = weighted_mean(*arguments)
    monkeypatch.setattr(passes, "LEAST_VALUES", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert torch.equal(bits(weighted_mean(*arguments)), bits(alone))


def test_where_nothing_can_be_written_it_is_compiled_for_this_process(monkeypatch):
    """As in a read-only install without a home."""
    from numba.core import caching

    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    with pytest.raises(RuntimeError, match="no locator"):
        numba.njit(cache=True)(in_torch)
    assert passes.kernels.__wrapped__() is not None
