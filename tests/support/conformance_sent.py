"""What strategies of a contract send, save and combine across ranks."""

import torch
from conformance import (
    EXPERTS,
    INITIAL,
    LAYERS,
    RANK,
    clients,
    close,
    dense,
    second_state,
    served,
    start_of,
    trained_by,
    update_of,
)

from fedmoe.adapter import Adapter
from fedmoe.messages.codec import (
    most_bytes,
    pack_task,
    pack_update,
    task_num_bytes,
    unpack_task,
    unpack_update,
)
from fedmoe.messages.compression import Int8, NoCompression
from fedmoe.messages.compression.parts import carried
from fedmoe.rounds import ServerState
from fedmoe.runs.recorder import adapter_parts
from fedmoe.runs.saved_adapter import read_adapter


def check_mixed_ranks(strategy):
    """Clients of unlike ranks whose products are the same give that product: `alpha / r` counts."""
    state = strategy.first_state(INITIAL)
    small = start_of(strategy, state, rank=2)[1]
    goal = trained_by(small, 80)
    updates = []
    for number, rank in enumerate((2, RANK)):
        task, local = start_of(strategy, state, client=number, rank=rank)
        after = Adapter(local.layouts.trained, torch.zeros(local.layouts.trained.size))
        ratio = goal.layout.scale / after.layout.scale
        for name, view in after.views().items():
            value = goal.views()[name]
            if name.endswith("shift"):
                view.copy_(value)
            elif name.endswith("A"):
                view[..., :2, :] = value
            else:
                view[..., :2] = value * ratio
        updates.append(update_of(task, local, after))
    wanted = dense(goal)
    close(served(strategy, strategy.combine(state, updates, 2)), wanted)


def check_adjoint(strategy):
    """`pull` is the adjoint of `write`: training follows the gradient of the model's loss."""
    for round in (1, 2):
        _, local = start_of(strategy, second_state(strategy), round)
        if local.whole:
            continue
        theta = trained_by(local, 90)
        step = trained_by(local, 91) - local.before
        models = []
        for value in (theta, theta + step):
            models.append(local.start.copy())
            local.write(value, models[-1])
        noise = torch.Generator().manual_seed(92)
        grad = Adapter(local.layouts.model, torch.randn(models[0].flat.shape, generator=noise))
        along_theta = local.pull(grad).flat.double() @ step.flat.double()
        along_model = grad.flat.double() @ (models[1].flat - models[0].flat).double()
        torch.testing.assert_close(along_theta, along_model, rtol=1e-4, atol=1e-5)


def num_sent(adapter):
    """The values of an adapter but for rank components, one after another, that are all zeros."""
    ranked = [(e, v) for e, v in adapter.layout.views(adapter.flat) if e.rank_axis is not None]
    zeros = [
        i
        for i in range(adapter.layout.rank)
        if ranked and not any(v.select(e.rank_axis, i).any() for e, v in ranked)
    ]
    assert not zeros or zeros == [*range(zeros[0], zeros[-1] + 1)]
    return adapter.flat.numel() - len(zeros) * sum(
        v.select(e.rank_axis, 0).numel() for e, v in ranked
    )


def check_messages(strategy):
    """Messages hold what the layouts say, and come back as they were."""
    state = strategy.first_state(INITIAL)
    used = ((0,), (0, 1))
    for rank in (RANK, *([2] if strategy.mixed_ranks else [])):
        for round, upload in ((1, NoCompression()), (2, Int8())):
            task, local = start_of(strategy, state, round, rank=rank)
            layouts, message = local.layouts, pack_task(task)
            assert message.num_bytes == task_num_bytes(task)
            assert len(message.buffer) == 4 * (num_sent(task.adapter) + LAYERS)
            assert torch.equal(unpack_task(message, layouts.task).adapter.flat, task.adapter.flat)
            update = update_of(task, local, trained_by(local, 5, used), used)
            packed = pack_update(update, upload)
            parts = carried(layouts.update, update.counts.numpy())
            values = upload.num_bytes(parts) if layouts.update.size else 0
            assert len(packed.buffer) == 8 * LAYERS * EXPERTS + 4 * LAYERS + values
            down, up = most_bytes(layouts.task, layouts.update, upload)
            assert message.num_bytes <= down
            assert packed.num_bytes <= up
            arrived = unpack_update(packed, layouts.update, task, upload)
            if upload.name == "none":
                assert torch.equal(arrived.delta.flat, update.delta.flat)


def check_saved(strategy, path):
    """A state that was saved and read gives the same next round."""
    state = second_state(strategy)
    path.write_bytes(b"".join(adapter_parts(state, ServerState(1, state, {}))))
    again = read_adapter(path, state.layout)[0]
    pair = [strategy.combine(s, clients(strategy, s, 7, 2)[0], 3) for s in (state, again)]
    assert pair[0].digest() == pair[1].digest()
