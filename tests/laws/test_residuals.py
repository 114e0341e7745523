"""Laws of error feedback: nothing is lost for good, and a round done again gives the same bytes."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from uploads import COUNTS, LAYOUT, counts_of, deltas_of, task_for, update_of

from fedmoe.adapter import Adapter
from fedmoe.errors import CheckpointError, WireError
from fedmoe.messages.codec import unpack_update
from fedmoe.messages.compression import Bf16, Int4, Int8, TopK
from fedmoe.runs.client_state import read_client_state, write_client_state
from fedmoe.runs.residuals import pack_with_residual

SETTINGS = [Bf16(error_feedback=True), Int8(error_feedback=True), Int4(), TopK(share=0.2)]
every_setting = pytest.mark.parametrize("upload", SETTINGS, ids=lambda upload: upload.name)
ALL = counts_of([[0, 1, 2, 3], [0, 1, 2, 3]])


def small_deltas(seed):
    """Multiples of 2^-12 below 4: their sums are exact in float32."""
    flat = torch.randint(-(2**14), 2**14, (LAYOUT.size,), generator=_generator(seed))
    return Adapter(LAYOUT, flat.float() / 2**12)


def _generator(seed):
    return torch.Generator().manual_seed(seed)


def send(folder, upload, round, delta, counts):
    """A client's round; the message and the update that arrives."""
    update = update_of(delta, counts, round=round)
    message = pack_with_residual(update, task_for(update), upload, folder)
    return message, unpack_update(message, LAYOUT, task_for(update), upload)


def owed(folder, before):
    return read_client_state(folder / "client-5" / "residual", before, LAYOUT)[1].flat


@every_setting
@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 99), COUNTS), min_size=1, max_size=6))
def test_what_was_sent_and_what_is_owed_sum_to_all_deltas(tmp_path_factory, upload, rounds):
    folder = tmp_path_factory.mktemp("state")
    trained, arrived = torch.zeros(LAYOUT.size), torch.zeros(LAYOUT.size)
    for number, (seed, counts) in enumerate(rounds, 1):
        trained += update_of(small_deltas(seed), counts).delta.flat
        arrived += send(folder, upload, number, small_deltas(seed), counts)[1].delta.flat
    torch.testing.assert_close(arrived + owed(folder, 99), trained, rtol=0, atol=2e-5)


@every_setting
def test_a_round_done_again_gives_the_same_bytes_whatever_came_after(tmp_path, upload):
    def play(numbers):
        return {n: send(tmp_path, upload, n, deltas_of(n), ALL)[0] for n in numbers}

    once = play([1, 2])
    assert play([2]) == {2: once[2]}
    assert play([1, 2]) == once
    later = play([4])
    assert play([4]) == later
    fresh = send(tmp_path / "other", upload, 4, deltas_of(4), ALL)[0]
    assert fresh != later[4]


def test_of_an_expert_that_was_not_used_nothing_is_sent_and_its_residual_waits(tmp_path):
    upload = TopK(share=0.1)
    send(tmp_path, upload, 1, deltas_of(1), ALL)
    before = owed(tmp_path, 2)
    counts = counts_of([[0, 1], [0, 1, 2, 3]])
    arrived = send(tmp_path, upload, 2, deltas_of(2), counts)[1]
    after = owed(tmp_path, 3)
    unused = slice(2 * 12, 4 * 12)  # experts 2 and 3 in the A of layer 0
    assert before[unused].any()
    assert not arrived.delta.flat[unused].any()
    assert torch.equal(before[unused], after[unused])
    later = send(tmp_path, TopK(share=1.0), 3, deltas_of(3), ALL)[1].delta.flat
    wanted = (deltas_of(3).flat + after).bfloat16().float()
    assert torch.equal(later[unused], wanted[unused])


def test_the_four_newest_files_are_kept_and_an_older_round_is_refused(tmp_path):
    for number in (2, 3, 4, 5, 8, 9):
        send(tmp_path, Int4(), number, deltas_of(number), ALL)
    names = sorted(path.name for path in (tmp_path / "client-5" / "residual").iterdir())
    assert names == [f"round-{number}.safetensors" for number in (4, 5, 8, 9)]
    with pytest.raises(CheckpointError, match="round 4 needs what was kept in round 3; the oldest"):
        send(tmp_path, Int4(), 4, deltas_of(4), ALL)
    send(tmp_path, Int4(), 8, deltas_of(8), ALL)


def test_the_first_round_can_be_done_again(tmp_path):
    first = send(tmp_path, Int4(), 2, deltas_of(2), ALL)[0]
    send(tmp_path, Int4(), 3, deltas_of(3), ALL)
    assert send(tmp_path, Int4(), 2, deltas_of(2), ALL)[0] == first


def test_a_client_that_diverges_keeps_its_residual(tmp_path):
    send(tmp_path, Int4(), 1, deltas_of(1), ALL)
    before = owed(tmp_path, 2)
    bad = deltas_of(2)
    bad.flat[0] = torch.nan
    with pytest.raises(WireError, match="client 5 diverged"):
        send(tmp_path, Int4(), 2, bad, ALL)
    assert torch.equal(owed(tmp_path, 3), before)


def test_without_a_folder_it_is_refused_with_what_to_do():
    with pytest.raises(CheckpointError, match=r"--node-config 'state=.*the same client's tasks"):
        send(None, Int4(), 1, deltas_of(1), ALL)


@pytest.mark.parametrize("damage", [b"", b"junk" * 100, None])
def test_a_damaged_file_or_another_adapters_is_refused(tmp_path, damage):
    send(tmp_path, Int4(), 1, deltas_of(1), ALL)
    path = tmp_path / "client-5" / "residual" / "round-1.safetensors"
    if damage is None:
        other = replace(LAYOUT, alpha=5.0)
        write_client_state(path.parent, 1, 0, Adapter(other, torch.zeros(other.size)))
    else:
        path.write_bytes(damage)
    said = r"round-1\.safetensors is (of another adapter|damaged)"
    with pytest.raises(CheckpointError, match=said):
        send(tmp_path, Int4(), 2, deltas_of(2), ALL)


def test_other_clients_residuals_are_their_own(tmp_path):
    one = update_of(deltas_of(1), ALL)
    two = replace(one, client=6)
    first = pack_with_residual(one, task_for(one), Int4(), tmp_path)
    again = pack_with_residual(two, task_for(two), Int4(), tmp_path)
    assert first.buffer == again.buffer
