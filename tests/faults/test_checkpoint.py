"""Checkpoint files: they come back as they were, and every bit of them counts."""

import pytest
import torch
from safetensors.torch import save

from fedmoe.adapter import Adapter, Layout
from fedmoe.errors import CheckpointError
from fedmoe.rounds import ServerState
from fedmoe.runs.checkpoint import Checkpoint, newest, write_checkpoint
from fedmoe.runs.round_files import tensor_parts
from fedmoe.system.background import Background

PLENTY = b""
"""A ledger, on which these checkpoints do not count."""
LAYOUT = Layout.of([("q.A", (1, 3), None), ("q.B", (2, 1), None)], 1, 2, 1, 1.0)


def checkpoint(number):
    adapter = Adapter(LAYOUT, torch.arange(5.0) + number)
    memory = {"v": torch.arange(5).double() / 3}
    state = ServerState(number, adapter, {"a tier": torch.ones(1)}, memory)
    counts = torch.arange(4).view(2, 1, 2)
    return Checkpoint(state, {0: state}, counts, counts + 1, {"seconds": 1.5})


def test_a_checkpoint_comes_back_as_it_was_and_the_newest_two_are_kept(tmp_path):
    for number in (1, 2, 10):
        write_checkpoint(tmp_path, checkpoint(number))
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["checkpoint-10.safetensors", "checkpoint-2.safetensors"]
    found, faults = newest(tmp_path, LAYOUT, PLENTY)
    assert not faults
    assert found.state.round == 10
    wanted = checkpoint(10)
    assert torch.equal(found.state.adapter.flat, wanted.state.adapter.flat)
    assert torch.equal(found.state.memory["v"], wanted.state.memory["v"])
    assert torch.equal(found.by_client, wanted.by_client)
    assert found.versions[0].round == 0
    assert found.about == {"seconds": 1.5}


def test_every_bit_of_a_checkpoint_counts(tmp_path):
    write_checkpoint(tmp_path, checkpoint(1))
    path = tmp_path / "checkpoint-1.safetensors"
    data = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for at in torch.randint(len(data), (300,), generator=generator).tolist():
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(CheckpointError, match="no whole checkpoint"):
            newest(tmp_path, LAYOUT, PLENTY)
    path.write_bytes(data)
    assert newest(tmp_path, LAYOUT, PLENTY)[0]


def test_a_file_is_the_one_that_safetensors_writes_but_for_the_order_of_its_metadata(tmp_path):
    named = {"a": torch.arange(3.0), "b.1": torch.arange(4).view(2, 2), "ä": torch.zeros(0)}
    tensors = named | {"c": torch.ones(2, 3).double().T, "z": torch.tensor(2.5)}
    path, metadata = tmp_path / "ours", {"x": "y"}
    path.write_bytes(b"".join(tensor_parts(tensors, metadata)))
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    assert path.read_bytes() == save(whole, metadata)


def test_of_another_adapter_it_is_refused_not_passed_over(tmp_path):
    write_checkpoint(tmp_path, checkpoint(1))
    other = Layout.of([("q.A", (1, 3), None), ("q.B", (2, 1), None)], 1, 2, 1, 2.0)
    with pytest.raises(CheckpointError, match="of another adapter"):
        newest(tmp_path, other, PLENTY)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_checkpoint(blocked, checkpoint(1))


def test_after_a_write_that_failed_nothing_more_is_written_and_the_reason_is_raised():
    jobs, done = Background(), []
    for job in (lambda: done.append(1), lambda: [][0], lambda: done.append(2)):
        jobs.add(job)
    with pytest.raises(IndexError):
        jobs.wait()
    jobs.close()
    assert done == [1]
