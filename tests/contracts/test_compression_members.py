"""Promises of every built-in compression, whatever it does to the values."""

import dataclasses
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from uploads import LAYOUT, UPDATES, deltas_of, task_for, update_of

from fedmoe.adapter import Layout, initial_adapter
from fedmoe.aggregation import FedAvg, Flame
from fedmoe.config import load_experiment
from fedmoe.config.load import json_schema, to_yaml
from fedmoe.config.schema import Experiment
from fedmoe.errors import WireError
from fedmoe.messages.codec import most_bytes, pack_update, unpack_update
from fedmoe.messages.compression import COMPRESSIONS, TopK

MEMBERS = COMPRESSIONS.members
SETTINGS = [*(member() for member in MEMBERS), TopK(share=1.0), TopK(share=0.01)]
few = settings(max_examples=40)
every_setting = pytest.mark.parametrize("upload", SETTINGS, ids=str)


@every_setting
@few
@given(UPDATES)
def test_what_arrives_passes_the_door_and_is_zero_where_nothing_was_routed(upload, update):
    message = pack_update(update, upload)
    assert message == pack_update(update, upload)
    task = task_for(update)
    arrived = unpack_update(message, LAYOUT, task, upload)
    assert arrived.num_bytes == message.num_bytes <= most_bytes(LAYOUT, LAYOUT, upload)[1]
    assert torch.equal(arrived.counts, update.counts)
    for entry, view in LAYOUT.views(arrived.delta.flat):
        if entry.layer is not None:
            silent = view[update.counts[entry.layer] == 0].numpy()
            assert silent.tobytes() == bytes(4 * silent.size)


@every_setting
@few
@given(UPDATES, st.integers(0, 2**31))
def test_an_unused_expert_stays_bit_identical_in_the_global_adapter(upload, update, seed):
    before = initial_adapter(LAYOUT, torch.Generator().manual_seed(seed))
    before.flat[::3] = -0.0
    arrived = unpack_update(pack_update(update, upload), LAYOUT, task_for(update), upload)
    for strategy in (FedAvg, Flame):  # `test_strategies` has all of them
        after = strategy().combine(before, [arrived])
        pairs = zip(LAYOUT.views(before.flat), LAYOUT.views(after.flat), strict=True)
        for (entry, old), (_, new) in pairs:
            if entry.layer is not None:
                silent = update.counts[entry.layer] == 0
                assert old[silent].numpy().tobytes() == new[silent].numpy().tobytes()


@every_setting
@few
@given(UPDATES, st.integers(-40, 40).filter(bool))
def test_a_cut_or_lengthened_buffer_is_refused(upload, update, change):
    message = pack_update(update, upload)
    buffer = message.buffer[:change] if change < 0 else bytes(message.buffer) + bytes(change)
    with pytest.raises(WireError, match=r"buffer of \d+ bytes; expected \d+"):
        unpack_update(replace(message, buffer=buffer), LAYOUT, task_for(update), upload)


@every_setting
@few
@given(UPDATES, st.randoms(use_true_random=False))
def test_random_values_are_refused_or_pass_all_checks(upload, update, random):
    message = pack_update(update, upload)
    head = 8 * update.counts.numel() + 4 * LAYOUT.num_layers
    body = random.randbytes(len(message.buffer) - head)
    task = task_for(update)
    try:
        arrived = unpack_update(
            replace(message, buffer=bytes(message.buffer[:head]) + body), LAYOUT, task, upload
        )
    except WireError:
        return
    assert arrived.delta.flat.isfinite().all()


@every_setting
def test_counts_that_claim_more_experts_than_were_sent_are_refused(upload):
    update = update_of(deltas_of(1), torch.tensor([[7, 7, 0, 0], [7, 0, 7, 0]]))
    message = pack_update(update, upload)
    lie = np.array([[7, 6, 1, 0], [7, 0, 7, 0]], "<i8").tobytes()
    # With one value in a hundred the sizes can agree; then the positions do not.
    with pytest.raises(WireError, match=r"(bytes|positions); expected \d+"):
        unpack_update(
            replace(message, buffer=lie + bytes(message.buffer[len(lie) :])),
            LAYOUT,
            task_for(update),
            upload,
        )


@every_setting
@pytest.mark.parametrize("change", [-1, 2**62, 8])
def test_impossible_counts_are_refused_before_anything_is_sized_by_them(upload, change):
    update = update_of(deltas_of(1), torch.tensor([[7, 7, 0, 0], [7, 0, 7, 0]]))
    message = pack_update(update, upload)
    buffer = np.array([change], "<i8").tobytes() + bytes(message.buffer[8:])
    with pytest.raises(WireError, match=r"a count of -?\d+|can reach an expert"):
        unpack_update(replace(message, buffer=buffer), LAYOUT, task_for(update), upload)


@every_setting
@pytest.mark.parametrize("extra", [0, 1, 10_000])
def test_a_short_message_for_a_huge_adapter_allocates_nothing_large(upload, extra):
    huge = Layout.of([("a.A", (4, 2**20, 2**10), 0), ("a.B", (4, 2**10, 2**20), 1)], 2, 4, 2, 4.0)
    update = update_of(deltas_of(1), torch.tensor([[4, 4, 4, 2], [7, 3, 2, 2]]))
    message = pack_update(update, upload)
    scalars = message.scalars.replace(LAYOUT.digest, huge.digest)
    lie = replace(message, scalars=scalars, buffer=bytes(message.buffer) + bytes(extra))
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match="bytes; expected"):
            unpack_update(lie, huge, task_for(update), upload)
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


@every_setting
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_is_refused_on_one_side_or_the_other(upload, value):
    update = update_of(deltas_of(1), torch.tensor([[4, 4, 4, 2], [7, 3, 2, 2]]))
    update.delta.flat[11] = value
    with pytest.raises(WireError, match="finite"):
        unpack_update(pack_update(update, upload), LAYOUT, task_for(update), upload)


@pytest.mark.parametrize("member", MEMBERS)
def test_a_member_is_chosen_by_name_and_explains_its_settings(member, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("name: x")
    experiment = load_experiment(path, [f"upload.name={member().name}"])
    assert experiment.upload == member()
    path.write_text(to_yaml(experiment))
    assert load_experiment(path) == experiment
    about = json_schema(Experiment)["$defs"][member.__name__]
    assert about["description"]
    fields = {field.name for field in dataclasses.fields(member)} - {"name"}
    assert all(about["properties"][name]["description"] for name in fields)
