"""Messages arrive as they were sent, to the bit; a damaged one is refused before it is used."""

import json
import math
from dataclasses import replace
from itertools import groupby

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmoe.adapter import Adapter, Layout
from fedmoe.errors import WireError
from fedmoe.messages.codec import (
    pack_task,
    pack_update,
    sealed,
    task_num_bytes,
    unpack_task,
    unpack_update,
)
from fedmoe.messages.records import (
    CLIENT_FIELDS,
    METRIC_NAME,
    MOST_METRIC,
    MOST_METRICS,
    Message,
    Task,
    Update,
)
from fedmoe.messages.validation import LARGEST_DELTA

LAYERS, EXPERTS = 2, 4
LAYOUT = Layout.of([("a.A", (EXPERTS, 2, 3), 0), ("q.B", (3, 2), None)], LAYERS, EXPERTS, 2, 4.0)
OTHER = Layout.of([("a.A", (EXPERTS, 3, 2), 0), ("q.B", (3, 2), None)], LAYERS, EXPERTS, 2, 4.0)


def flat_of(seed):
    """Random values with zeros of both signs and a subnormal among them."""
    flat = torch.randn(LAYOUT.size, generator=torch.Generator().manual_seed(seed))
    flat[:3] = torch.tensor([0.0, -0.0, 1e-42])
    return flat


def task_of(**changes):
    rescaler, adapter = torch.tensor([1.0, 0.3]), Adapter(LAYOUT, flat_of(0))
    fields = {"round": 3, "client": 5, "tier": "low", "top_k": 2}
    return Task(**(fields | {"rescaler": rescaler, "adapter": adapter} | changes))


def update_of(**changes):
    counts = torch.tensor([[7, 2, 4, 1], [7, 7, 0, 0]])
    fields = {
        "round": 3,
        "client": 5,
        "tier": "low",
        "top_k": 2,
        "rescaler": torch.tensor([0.9, -1.5]),
        "delta": Adapter(LAYOUT, flat_of(1)),
        "counts": counts,
        "examples": 11,
        "tokens": 7,
        "steps": 4,
        "loss_before": 2.5,
        "loss_after": 1 / 3,
        "seconds": 0.25,
        "peak_bytes": 2**33,
    }
    return Update(**(fields | changes))


def received(message):
    """An update at the server of a run that learns rescalers."""
    return unpack_update(message, LAYOUT, task_of(), learns_rescaler=True)


def bits(value):
    """A value in a form in which two are equal only if every bit is."""
    if isinstance(value, Adapter):
        return value.layout.digest, bits(value.flat)
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.numpy().tobytes()
    return type(value), value


def same(one, other):
    return {k: bits(v) for k, v in vars(one).items()} == {
        k: bits(v) for k, v in vars(other).items()
    }


@given(st.integers(0, 2**31), st.integers(1, 2**53), st.text(max_size=5), st.integers(1, EXPERTS))
def test_a_task_arrives_to_the_bit(client, number, tier, top_k):
    task = task_of(client=client, round=number, tier=tier, top_k=top_k)
    assert same(unpack_task(pack_task(task), LAYOUT), task)


WIDE = LAYOUT.with_rank(5)


@given(st.lists(st.sampled_from(["value", "zero", "minus zero"]), min_size=5, max_size=5))
def test_components_of_zeros_do_not_travel_and_arrive_to_the_bit(rows):
    adapter = Adapter(WIDE, torch.ones(WIDE.size))
    for entry, view in WIDE.views(adapter.flat):
        for i, row in enumerate(rows):
            view.select(entry.rank_axis, i).fill_(1.0 if row == "value" else 0.0)
            if row == "minus zero" and entry.name == "q.B":
                view.select(entry.rank_axis, i)[0] = -0.0
    task = task_of(adapter=adapter)
    message = pack_task(task)
    assert same(unpack_task(message, WIDE), task)
    assert task_num_bytes(task) == message.num_bytes
    run = next((len(list(group)) for row, group in groupby(rows) if row == "zero"), 0)
    assert len(message.buffer) == 4 * (WIDE.with_rank(5 - run).size + LAYERS)


@pytest.mark.parametrize(
    "zeros", [[0, 3], [-1, 1], [1, 1], [1, 0], [0], [0, 1, 2], [0.0, 1], [False, True], "01", {}]
)
def test_zeros_that_are_no_run_of_components_are_refused(zeros):
    with pytest.raises(WireError, match=r"^zeros is .*; expected the first and the end of"):
        unpack_task(with_scalars(pack_task(task_of()), zeros=zeros), LAYOUT)


def test_a_task_with_fewer_values_than_its_zeros_leave_is_refused():
    with pytest.raises(WireError, match=r"buffer of \d+ bytes; expected \d+"):
        unpack_task(with_scalars(pack_task(task_of()), zeros=[0, 1]), LAYOUT)


kinds = {
    field.name: st.floats(field.least, field.most)
    if field.type is float
    else st.integers(int(field.least), int(min(field.most, 2**40)))
    for field in CLIENT_FIELDS
    if field.name != "tokens"  # which the counts must agree with
}
metrics = st.dictionaries(
    st.from_regex(METRIC_NAME, fullmatch=True),
    st.floats(-MOST_METRIC, MOST_METRIC),
    max_size=MOST_METRICS,
)


@given(st.fixed_dictionaries(kinds), metrics)
def test_an_update_arrives_to_the_bit(reported, own):
    update = update_of(**reported, metrics=own)
    message = pack_update(update)
    assert len(message.buffer) == 4 * LAYOUT.size + 4 * LAYERS + 8 * LAYERS * EXPERTS
    assert same(received(message), replace(update, num_bytes=message.num_bytes))


@pytest.mark.parametrize("field", CLIENT_FIELDS, ids=lambda field: field.name)
def test_a_number_outside_its_bounds_is_refused(field):
    for bound, beyond in ((field.least, -1), (field.most, 1)):
        change = {field.name: field.type(bound + beyond)}
        with pytest.raises(WireError, match=f"^{field.name} is .*; expected") as caught:
            received(with_scalars(pack_update(update_of()), **change))
        assert caught.value.code == "scalars"


def task_received(message):
    return unpack_task(message, LAYOUT)


@pytest.mark.parametrize(
    "change", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b"", lambda b: b * 2]
)
def test_a_buffer_of_another_length_is_refused(change):
    sent = (pack_task(task_of()), task_received), (pack_update(update_of()), received)
    for message, unpack in sent:
        with pytest.raises(WireError, match=r"buffer of \d+ bytes; expected \d+"):
            unpack(replace(message, buffer=change(bytes(message.buffer))))


def test_another_layout_of_the_same_size_is_refused():
    assert OTHER.size == LAYOUT.size
    message = pack_task(task_of(adapter=Adapter(OTHER, flat_of(0))))
    with pytest.raises(WireError, match=f"layout '{OTHER.digest}'; expected '{LAYOUT.digest}'"):
        unpack_task(message, LAYOUT)


OTHERWISE = {"rank": 3, "alpha": 5.0, "num_experts": 5, "num_layers": 3}
ENTRIES = [{"entries": LAYOUT.entries[::-1]}, {"entries": LAYOUT.entries[:1]}]


@pytest.mark.parametrize("change", [*({k: v} for k, v in OTHERWISE.items()), *ENTRIES])
def test_whatever_changes_a_layout_changes_its_digest(change):
    assert replace(LAYOUT, **change).digest != LAYOUT.digest


def damaged(value):
    flat = flat_of(1)
    flat[7] = value
    return {"delta": Adapter(LAYOUT, flat)}


COUNTS = [[7, 2, 4, 1], [7, 7, 0, 0]]
WRAPS = [[2**63 - 1, 2**63 - 1, 2, 14], COUNTS[1]]  # sums to 14 in 64 bits
REFUSED = [
    ({"round": 4}, "round 4; .* 3$"),
    ({"client": 6}, "client 6; .* 5$"),
    ({"tier": "high"}, "tier 'high'"),
    ({"top_k": 3}, "top_k 3"),
    ({"top_k": 0}, "top_k 0"),
    ({"top_k": 1}, r"\* 1 in each"),
    (damaged(math.nan), "delta has a value of nan"),
    (damaged(math.inf), "delta has a value of inf"),
    (damaged(-math.inf), "delta has a value of inf"),
    (damaged(-1.01 * LARGEST_DELTA), "delta has a value of 10100"),
    ({"rescaler": torch.tensor([1.0, math.nan])}, "rescaler"),
    ({"rescaler": torch.tensor([1.0, 1e30])}, "rescaler"),
    ({"counts": torch.tensor([[7, 2, 6, -1], COUNTS[1]])}, "a count of -1"),
    ({"counts": torch.tensor([[5, 2, 4, 1], COUNTS[1]])}, r"\[12, 14\]; expected .* 7 \* 2"),
    ({"counts": torch.tensor([COUNTS[0], [7, 7, 1, 0]])}, r"\[14, 15\]"),
    ({"counts": torch.tensor([[8, 4, 1, 1], COUNTS[1]])}, "7 tokens can reach an expert"),
    ({"counts": torch.tensor(WRAPS)}, "7 tokens can reach an expert"),
    ({"steps": 10**100}, "steps is 10+; expected 1 to"),
]


@pytest.mark.parametrize(("change", "reason"), REFUSED)
def test_an_update_that_no_honest_client_sends_is_refused(change, reason):
    update = update_of(**change)
    with pytest.raises(WireError, match=reason):
        received(pack_update(update))


def test_a_changed_rescaler_is_refused_unless_the_run_learns_it():
    kept, changed = update_of(rescaler=task_of().rescaler), update_of()
    unpack_update(pack_update(kept), LAYOUT, task_of())
    with pytest.raises(WireError, match=r"expected the task's .* does not learn it"):
        unpack_update(pack_update(changed), LAYOUT, task_of())


def with_scalars(message, **changes):
    scalars = {k: v for k, v in (json.loads(message.scalars) | changes).items() if v is not ...}
    return replace(message, scalars=json.dumps(scalars))


ILL_TYPED = [
    ("round", True),
    ("client", 5.0),
    ("client", "5"),
    ("tier", 3),
    ("top_k", None),
    ("examples", False),
    ("tokens", [7]),
    ("steps", 1e3),
    ("peak_bytes", {}),
    ("seconds", "1"),
    ("loss_before", None),
    ("loss_after", math.nan),
    ("seconds", 10**400),
]


@pytest.mark.parametrize(("name", "value"), ILL_TYPED, ids=lambda v: repr(v)[:12])
def test_a_scalar_of_another_type_is_refused(name, value):
    with pytest.raises(WireError, match=f"^{name} is .*; expected a finite "):
        received(with_scalars(pack_update(update_of()), **{name: value}))


@pytest.mark.parametrize("change", [{"steps": ...}, {"layout": ...}, {"mood": 1}])
def test_a_missing_or_unknown_scalar_is_refused(change):
    with pytest.raises(WireError, match=r"scalars are .*; expected "):
        received(with_scalars(pack_update(update_of()), **change))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "7", '"round"', "\ud800", "[" * 10**5, "9" * 10**4, "{}{}"]
)
def test_scalars_that_are_no_json_object_are_refused(text):
    for unpack in (task_received, received):
        with pytest.raises(WireError, match="scalars are"):
            unpack(Message(text, b""))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"top_k": -1}, "top_k is -1; expected 1 to 4"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": EXPERTS + 1}, "top_k is 5"),
        ({"adapter": damaged(math.nan)["delta"]}, "not finite"),
        ({"rescaler": torch.tensor([1.0, math.inf])}, "not finite"),
    ],
)
def test_a_task_that_no_honest_server_sends_is_refused(change, reason):
    with pytest.raises(WireError, match=reason):
        unpack_task(pack_task(task_of(**change)), LAYOUT)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
SIZE = len(pack_update(update_of()).buffer)


@settings(max_examples=200)
@given(
    st.text(max_size=20)
    | st.dictionaries(
        st.sampled_from([*json.loads(pack_update(update_of()).scalars), "metrics"]), values
    ),
    st.binary(max_size=64) | st.binary(min_size=SIZE, max_size=SIZE),
)
def test_random_bytes_raise_nothing_but_a_wire_error(scalars, buffer):
    if isinstance(scalars, dict):
        scalars = json.dumps(json.loads(pack_update(update_of()).scalars) | scalars)
    message = Message(scalars, buffer)
    for unpack in (task_received, received):
        with pytest.raises(WireError):
            unpack(message)


@pytest.mark.parametrize("held", [bytes, bytearray])
def test_every_value_is_summed_and_bounded_whatever_block_it_is_in(held, monkeypatch):
    monkeypatch.setattr("fedmoe.messages.codec.BLOCK_VALUES", 4)
    task, update = task_of(), update_of()
    both = sealed(pack_task(task)), sealed(pack_update(update))
    sent, answer = (replace(m, buffer=held(m.buffer)) for m in both)
    assert unpack_task(sent, LAYOUT).adapter.digest() == task.adapter.digest()
    assert received(answer).delta.digest() == update.delta.digest()
    for place in range(LAYOUT.size):
        task, update = task_of(), update_of()
        task.adapter.flat[place], update.delta.flat[place] = math.inf, math.nan
        with pytest.raises(WireError, match="not finite"):
            unpack_task(replace(pack_task(task), buffer=held(pack_task(task).buffer)), LAYOUT)
        with pytest.raises(WireError, match="a value of nan"):
            received(replace(pack_update(update), buffer=held(pack_update(update).buffer)))
    for message, unpack in ((sent, task_received), (answer, received)):
        for place in range(len(message.buffer)):
            damaged = bytearray(message.buffer)
            damaged[place] ^= 1
            with pytest.raises(WireError, match="damaged on its way"):
                unpack(replace(message, buffer=held(damaged)))


def test_a_buffer_is_copied_out_of_the_message():
    message = pack_task(task_of())
    unpack_task(message, LAYOUT).adapter.flat.zero_()
    assert message == pack_task(task_of())
