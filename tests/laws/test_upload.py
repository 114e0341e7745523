"""Laws of single compressions: nothing lost, errors within a bound, the largest values kept."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from uploads import LAYOUT, UPDATES, counts_of, deltas_of, task_for, update_of

from fedmoe.adapter import Adapter, keep_untouched
from fedmoe.errors import WireError
from fedmoe.messages.codec import pack_update, unpack_update
from fedmoe.messages.compression import Bf16, Int4, Int8, NoCompression, TopK
from fedmoe.messages.compression.parts import carried, gather, num_values, scatter
from fedmoe.messages.compression.positions import (
    num_position_bytes,
    pack_positions,
    unpack_positions,
)


def sent(update, upload):
    return unpack_update(pack_update(update, upload), LAYOUT, task_for(update), upload)


@given(UPDATES)
def test_without_compression_every_bit_arrives_and_unused_experts_cost_nothing(update):
    message = pack_update(update, NoCompression())
    assert sent(update, NoCompression()).delta.digest() == update.delta.digest()
    used = sum(
        int((update.counts[e.layer] > 0).sum()) * view[0].numel()
        if e.layer is not None
        else view.numel()
        for e, view in LAYOUT.views(update.delta.flat)
    )
    head = 8 * update.counts.numel() + 4 * LAYOUT.num_layers
    assert len(message.buffer) == head + 4 * used


def test_a_delta_where_nothing_was_routed_is_our_mistake():
    update = update_of(deltas_of(0), counts_of([[0, 1], [2, 3]]))
    flat = update.delta.flat.clone()
    flat[2 * 12] = 1.0  # expert 2 of layer 0
    with pytest.raises(AssertionError, match=r"0\.up\.A: a delta where no token was routed"):
        pack_update(update_of_flat(update, flat))


def update_of_flat(update, flat):
    return type(update)(**(vars(update) | {"delta": Adapter(LAYOUT, flat)}))


@given(UPDATES)
def test_gather_and_scatter_are_each_others_inverse(update):
    parts = carried(LAYOUT, update.counts.numpy())
    flat = update.delta.flat.numpy()
    values = gather(flat, parts)
    assert len(values) == num_values(parts)
    # An unused expert's -0.0, too, was made 0.0 before it is left out.
    assert scatter(values, parts, LAYOUT.size).tobytes() == flat.tobytes()


@given(UPDATES)
def test_bfloat16_is_off_by_one_part_in_256_and_rounds_halves_to_even(update):
    exact, arrived = update.delta.flat, sent(update, Bf16()).delta.flat
    assert ((arrived - exact).abs() <= exact.abs() / 256).all()
    assert torch.equal(arrived, exact.bfloat16().float())


def components(adapter):
    """The values of every row of an A and every column of a B, expert by expert."""
    for entry, view in LAYOUT.views(adapter.flat):
        rows = view.transpose(-1, -2) if entry.name.endswith(".B") else view
        yield from rows.reshape(-1, rows.shape[-1])


@pytest.mark.parametrize(("upload", "steps"), [(Int8(), 127), (Int4(), 7)])
@given(UPDATES)
def test_an_integer_is_off_by_half_a_step_of_its_rank_component(upload, steps, update):
    arrived = sent(update, upload).delta
    for exact, got in zip(components(update.delta), components(arrived), strict=True):
        step = exact.double().abs().max() / steps
        assert ((got.double() - exact).abs() <= step * (0.5 + 1e-4)).all()


@pytest.mark.parametrize(("upload", "steps"), [(Int8(), 127), (Int4(), 7)])
def test_integers_are_the_slow_formulas(upload, steps):
    update = update_of(deltas_of(3), counts_of([[0, 2, 3], [1, 3]]))
    arrived = sent(update, upload).delta
    for exact, got in zip(components(update.delta), components(arrived), strict=True):
        scale = np.float32(exact.abs().max()) / np.float32(steps)
        for v, w in zip(exact.tolist(), got.tolist(), strict=True):
            whole = round(np.float32(v) / scale) if scale else 0  # Python's round: half to even
            assert np.float32(whole) * scale == np.float32(w)


@pytest.mark.parametrize(("upload", "steps"), [(Int8(), 127), (Int4(), 7)])
def test_halves_round_to_even_and_tiny_values_to_zero(upload, steps):
    counts = counts_of([[0, 1], [0, 1]])
    flat = torch.zeros(LAYOUT.size)
    flat[:6] = torch.tensor([steps, 0.5, 1.5, -0.5, -1.5, 2.5])
    flat[6:12] = 1e-44
    delta = keep_untouched(Adapter(LAYOUT, flat), counts)
    arrived = sent(update_of(delta, counts), upload).delta.flat
    assert arrived[:12].tolist() == [steps, 0, 2, 0, -2, 2, *[0.0] * 6]


@given(UPDATES, st.floats(0.001, 1))
def test_top_k_keeps_the_largest_of_what_is_carried(update, share):
    upload = TopK(share=share)
    parts = carried(LAYOUT, update.counts.numpy())
    exact = torch.from_numpy(gather(update.delta.flat.numpy(), parts))
    arrived = torch.from_numpy(gather(sent(update, upload).delta.flat.numpy(), parts))
    order = sorted(range(len(exact)), key=lambda i: (-abs(exact[i].item()), i))
    kept = order[: upload.num_kept(parts)]
    wanted = torch.zeros_like(exact)
    wanted[kept] = exact[kept].bfloat16().float()
    assert len(kept) == -int(-share * len(exact) // 1)
    assert torch.equal(arrived, wanted)


@given(st.integers(1, 400).flatmap(lambda n: st.sets(st.integers(0, n - 1)).map(lambda s: (s, n))))
def test_positions_arrive_in_a_known_number_of_bytes(case):
    positions, n = np.array(sorted(case[0]), np.int64), case[1]
    data = b"".join(p.tobytes() for p in pack_positions(positions, n))
    assert len(data) == num_position_bytes(len(positions), n)
    again = unpack_positions(np.frombuffer(data, np.uint8), len(positions), n)
    assert again.tolist() == positions.tolist()


def test_positions_are_cheaper_than_a_bitmap_and_near_the_least_possible():
    n = 100_000
    for share in (0.001, 0.01, 0.1, 0.2):
        bits = 8 * num_position_bytes(int(share * n), n) / n
        least = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
        assert least <= bits <= min(1.2 * least, 1), share


@given(st.binary(max_size=40), st.integers(1, 30), st.integers(1, 300))
def test_random_bytes_are_positions_in_order_or_refused(data, m, n):
    m = min(m, n)
    data = np.frombuffer(data.ljust(num_position_bytes(m, n), b"\x5a"), np.uint8)
    try:
        positions = unpack_positions(data[: num_position_bytes(m, n)], m, n)
    except WireError:
        return
    assert len(positions) == m
    assert positions[0] >= 0
    assert positions[-1] < n
    assert (np.diff(positions) > 0).all()
