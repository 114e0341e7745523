"""Frozen experts in other forms: codes against their definition, products against a plain loop."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedmoe.errors import ModelError
from fedmoe.models.experts import SparseExperts
from fedmoe.models.memory import offload
from fedmoe.models.memory.stored import BITS, Elsewhere, Frozen, Quantised, quantised, stored_bytes
from fedmoe.models.routed import route

CPU = torch.device("cpu")
KINDS: list[Frozen] = ["int8", "int4"]


def random_weights(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def slow_quantised(weights, bits, group):
    """The formula, one group of values at a time."""
    out = torch.empty_like(weights)
    largest = 2 ** (bits - 1) - 1
    for place in torch.cartesian_prod(*(torch.arange(n) for n in weights.shape[:-1])).tolist():
        row = weights[tuple(place)]
        for start in range(0, len(row), group):
            values = row[start : start + group]
            scale = (values.float().abs().max() / largest).to(weights.dtype)
            for i, value in enumerate(values.tolist()):
                whole = round(value / scale.item()) if scale else 0
                whole = max(-largest, min(largest, whole))
                out[(*place, start + i)] = (scale.float() * whole).to(weights.dtype)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "row", "group"), [("int8", 20, 20), ("int4", 128, 64), ("int4", 48, 16)]
)
def test_codes_are_what_the_formula_says(kind, row, group, dtype):
    weights = random_weights(2, 3, row, dtype=dtype)
    weights[0, 1] = 0
    stored = quantised(weights, kind)
    assert stored.shape == weights.shape
    assert torch.equal(stored[0:2], slow_quantised(weights, BITS[kind], group))
    assert torch.equal(stored[1], stored[0:2][1])
    assert torch.equal(stored.mT[1], stored[1].mT)


@given(st.sampled_from(KINDS), st.floats(1e-30, 1e30), st.integers(0, 2**31))
def test_no_value_is_further_off_than_half_a_step_of_its_row(kind, size, seed):
    weights = random_weights(2, 3, 128, seed=seed) * size
    groups = weights.unflatten(-1, (-1, 128 if kind == "int8" else 64))
    step = groups.abs().amax(-1, keepdim=True) / (127 if kind == "int8" else 7)
    error = (quantised(weights, kind)[0:2].view_as(groups) - groups).abs()
    assert (error <= step * (0.5 + 1e-4)).all()


@pytest.mark.parametrize(
    ("kind", "dtype", "expected"),
    [
        ("int8", torch.float32, 5 * 7 * (128 + 4)),
        ("int8", torch.bfloat16, 5 * 7 * (128 + 2)),
        ("int4", torch.float32, 5 * 7 * (64 + 2 * 4)),
        ("int4", torch.bfloat16, 5 * 7 * (64 + 4)),
    ],
)
def test_bytes_are_those_that_the_tensors_hold(kind, dtype, expected):
    stored = quantised(random_weights(5, 7, 128, dtype=dtype), kind)
    storages = (stored.codes.untyped_storage().nbytes(), stored.scales.untyped_storage().nbytes())
    assert sum(storages) == stored.num_bytes == expected
    assert stored_bytes(5 * 7, 128, kind, torch.finfo(dtype).bits // 8) == expected
    assert stored_bytes(5 * 7, 128, "full", 4) == 5 * 7 * 128 * 4


def test_rows_that_4_bits_cannot_group_are_refused():
    with pytest.raises(ModelError, match="rows of 20; use 'int8'"):
        quantised(random_weights(1, 2, 20), "int4")


def layer(seed=0, dtype=torch.float32, tokens=24, width=32, inner=16, rank=4):
    """Random leaves of a layer of 6 experts, and a choice of 3 for each token."""
    shapes = [
        (tokens, width),
        (tokens, 3),
        (6, 2 * inner, width),
        (6, width, inner),
        (6, rank, width),
        (6, 2 * inner, rank),
        (6, rank, inner),
        (6, width, rank),
    ]
    leaves = [random_weights(*s, seed=seed + i, dtype=dtype) for i, s in enumerate(shapes)]
    generator = torch.Generator().manual_seed(seed)
    index = torch.rand(tokens, 6, generator=generator).argsort(-1)[:, :3]
    return leaves, index


def slow_layer(leaves, index):
    """The formula, one token and one chosen expert at a time, with weights in full."""
    x, weights, w1, w2, a1, b1, a2, b2 = leaves
    rows = []
    for t in range(len(x)):
        y = torch.zeros_like(x[t])
        for j, e in enumerate(index[t].tolist()):
            gate, up = ((w1[e] + 1.5 * b1[e] @ a1[e]) @ x[t]).chunk(2)
            h = nn.functional.silu(gate) * up
            y = y + weights[t, j] * ((w2[e] + 1.5 * b2[e] @ a2[e]) @ h)
        rows.append(y)
    return torch.stack(rows)


def gradients(out, leaves):
    weighting = random_weights(*out.shape, seed=99).to(out.dtype)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    return [out.detach(), *torch.autograd.grad((out * weighting).sum(), wanted)]


def ours(leaves, index, stored, recompute=False):
    """Our layer; the frozen weights stand for shapes alone where they are stored elsewhere."""
    x, weights, w1, w2, *factors = leaves
    if stored:
        w1, w2 = (torch.empty_like(w, device="meta") for w in (w1, w2))
    trained = [leaf.clone().requires_grad_() for leaf in (x, weights, *factors)]
    out = SparseExperts.apply(
        *trained[:2], w1, w2, *trained[2:], 1.5, route(index, 6), nn.SiLU(), recompute, stored
    )
    return gradients(out, trained)


@settings(max_examples=15)
@given(st.sampled_from(KINDS), st.integers(0, 2**31), st.booleans())
def test_values_and_gradients_are_those_of_dequantised_weights_in_float64(kind, seed, recompute):
    leaves, index = layer(seed)
    stored = quantised(leaves[2], kind), quantised(leaves[3], kind)
    found = ours(leaves, index, stored, recompute)
    exact = [leaf.double() for leaf in leaves]
    exact[2:4] = [w[0:6].double() for w in stored]
    for i in (0, 1, 4, 5, 6, 7):
        exact[i].requires_grad_()
    wanted = gradients(slow_layer(exact, index), exact)
    assert len(found) == len(wanted) == 7
    for a, b in zip(found, wanted, strict=True):
        assert (a.double() - b).norm() <= 1e-5 * b.norm()
    full = ours(leaves, index, None)
    assert 1e-3 < (found[0] - full[0]).norm() / full[0].norm() < (0.05 if kind == "int8" else 0.6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_every_time_and_with_recomputation(kind):
    leaves, index = layer()
    stored = quantised(leaves[2], kind), quantised(leaves[3], kind)
    first, *others = (ours(leaves, index, stored, again) for again in (False, False, True))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_an_expert_without_rows_is_never_read():
    leaves, index = layer()
    index[index == 2] = 6
    read = []

    class Watched(Quantised):
        def __getitem__(self, experts):
            read.append(experts)
            return super().__getitem__(experts)

    stored = tuple(
        Watched(CPU, q.codes, q.scales) for q in (quantised(w, "int8") for w in leaves[2:4])
    )
    ours(leaves, index, stored)
    assert set(read) == {0, 1, 3, 4, 5}  # one at a time, too
    assert len(read) == 4 * 5  # two products forward, two back


def test_what_lies_elsewhere_computes_the_same_bits():
    leaves, index = layer(width=64, inner=32)
    for kind in KINDS:
        here = tuple(quantised(w, kind) for w in leaves[2:4])
        there = tuple(stored.placed(offload.mapped) for stored in here)
        a, b = (ours(leaves, index, stored) for stored in (here, there))
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    # The path of a GPU, whose weights in full lie in main memory: here both are one place.
    away = tuple(Elsewhere(CPU, offload.mapped(w)) for w in leaves[2:4])
    for a, b in zip(ours(leaves, index, None), ours(leaves, index, away), strict=True):
        assert (a - b).norm() <= 1e-6 * b.norm()  # grouped there, expert by expert here


def test_a_mapped_tensor_has_no_memory_of_its_own_and_its_file_no_name(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    weights = random_weights(4, 8, 64, dtype=torch.bfloat16)
    found = offload.mapped(weights)
    assert torch.equal(found, weights)
    assert list(tmp_path.iterdir()) == []
    with open("/proc/self/maps") as maps:
        lines = [line.split(maxsplit=5) for line in maps]
    spans = [(*(int(x, 16) for x in line[0].split("-")), line[-1]) for line in lines]
    (name,) = [name for low, high, name in spans if low <= found.data_ptr() < high]
    assert str(tmp_path) in name


def test_a_file_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(ModelError, match="set TMPDIR to a folder with room"):
        offload.mapped(torch.ones(3))


@pytest.mark.parametrize("family", ["olmoe", "mixtral"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_in_codes_is_the_model_with_dequantised_weights(
    tiny_model, random_adapter, family, kind
):
    ids = torch.randint(2, 64, (3, 10), generator=torch.Generator().manual_seed(0))
    valid = torch.ones_like(ids, dtype=torch.bool)
    model = tiny_model(family)
    plain = copy.deepcopy(model.model)
    model.load(random_adapter(model.layout))
    model.frozen.hold({kind: False})
    assert all(layer.experts.down_proj.is_meta for layer in model.layers)
    logits = model.logits(model.hidden(ids, valid)).detach()
    restored = tiny_model(family)
    restored.load(random_adapter(restored.layout))
    for layer in restored.layers:
        for name in ("gate_up_proj", "down_proj"):
            weights = getattr(layer.experts, name)
            weights.data = quantised(weights, kind)[0 : layer.num_experts]
    wanted = restored.logits(restored.hidden(ids, valid)).detach()
    assert (logits - wanted).norm() <= 1e-5 * wanted.norm()
    full = plain(input_ids=ids).logits
    assert (logits - full).norm() > 1e-3 * full.norm()
