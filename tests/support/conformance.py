"""The laws of strategies, as functions that raise where a strategy breaks one.

Some hold for every strategy, the others for those that claim them by a trait (`Strategy`).

A round is played on a small adapter, some of whose sides equal its rank, with a square weight
among them: factors must not be told by their shapes. Clients start as the strategy says, move what
it trains by random amounts, and send what it sends; nothing here knows how a strategy combines.
"""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from fedmoe.adapter import Adapter, Layout, initial_adapter, keep_untouched
from fedmoe.aggregation.strategy import Local
from fedmoe.errors import AggregationError
from fedmoe.messages.records import Task, Update
from fedmoe.models.adapted import LoRA

LAYERS, EXPERTS, RANK, TOKENS = 2, 3, 4, 6
SHAPES = {"up": (5, 4), "down": (4, 6)}  # out, in
PLAIN = Layout.of(
    [
        (f"{layer}.experts.{name}.{kind}", shape, layer)
        for layer in range(LAYERS)
        for name, (out, into) in SHAPES.items()
        for kind, shape in (("A", (EXPERTS, RANK, into)), ("B", (EXPERTS, out, RANK)))
    ]
    + [("0.gate.shift", (EXPERTS, 4), None), ("q.A", (RANK, 4), None), ("q.B", (4, RANK), None)],
    LAYERS,
    EXPERTS,
    RANK,
    8.0,
)
LORA = LoRA(rank=RANK, alpha=8.0)
INITIAL = initial_adapter(PLAIN, torch.Generator().manual_seed(5))
ALL = ((0, 1, 2), (0, 1, 2))
ROOMY = {"merged_rank": 64, "tau": 1.0}
"""Settings with which strategies that cut are exact."""


def made(kind, **settings):
    """A strategy, with room to be exact where that is a setting."""
    fields = kind.__dataclass_fields__
    return kind(**{k: v for k, v in (ROOMY | settings).items() if k in fields})


def at_rank(rank):
    """What LoRA adds at a rank; see `LoRA.at_rank`."""
    return LORA.at_rank(PLAIN, rank)


def layouts_of(strategy, round, rank=RANK):
    return strategy.layouts(at_rank(rank), round)


def start_of(strategy, state, round=1, client=0, rank=RANK, top_k=1):
    """A task and the client's side of it."""
    plain = at_rank(rank)
    sent = strategy.send(state, plain)
    task = Task(round, client, "tier", top_k, torch.ones(LAYERS), sent)
    layouts = layouts_of(strategy, round, rank)
    assert sent.layout.digest == layouts.task.digest
    local = strategy.local(task, layouts, INITIAL)
    assert local.start.layout.digest == layouts.model.digest
    return task, local


def counts_of(used):
    """TOKENS tokens a layer, shared out over the experts in `used`."""
    counts = torch.zeros(LAYERS, EXPERTS, dtype=torch.int64)
    for layer, experts in enumerate(used):
        for token in range(TOKENS):
            counts[layer, experts[token % len(experts)]] += 1
    return counts


def update_of(task, local, after, used=ALL, examples=3):
    """The update of a client whose training ended at `after`, in the layout `trained`."""
    counts = counts_of(used)
    local.mass = counts.float()
    if local.backward is not None:  # as if these tokens had been routed
        for layer, row in enumerate(counts):
            chosen = torch.arange(EXPERTS).repeat_interleave(row).unsqueeze(1)
            local.backward.without(layer, chosen, torch.full(chosen.shape, 0.5))
    local.correct(torch.zeros_like(after.flat), after.flat.clone(), counts)
    delta = keep_untouched(local.finish(after, counts), counts)
    return Update(
        round=task.round,
        client=task.client,
        tier=task.tier,
        top_k=task.top_k,
        rescaler=task.rescaler,
        delta=delta,
        counts=counts,
        examples=examples,
        tokens=TOKENS,
        steps=1,
        loss_before=1.0,
        loss_after=1.0,
        seconds=0.1,
        peak_bytes=0,
    )


def trained_by(local, seed, used=ALL, size=0.3):
    """Where training ends that moves the used experts, and shared parts, at random."""
    layout = local.layouts.trained
    noise = torch.randn(layout.size, generator=torch.Generator().manual_seed(seed)) * size
    moved = keep_untouched(Adapter(layout, noise), counts_of(used))
    return local.before + moved


def dense(adapter):
    """Every weight's change, float64: scale * B A, or the tensor itself where it is no factor."""
    views = {n: v.double() for n, v in adapter.views().items()}
    products = {
        n[:-2]: adapter.layout.scale * views[n[:-1] + "B"] @ views[n]
        for n in views
        if n.endswith(".A")
    }
    return products | {n: v for n, v in views.items() if n.endswith(".shift")}


def after_of(local: Local, after):
    """The model's adapter after training."""
    model = local.start.copy()
    if local.whole:
        return after
    local.write(after, model)
    return model


def served(strategy, state, round=2):
    """The dense change that all clients compute with next."""
    return dense(start_of(strategy, state, round)[1].start)


def close(found, expected, tolerance=2e-5):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=tolerance, atol=tolerance)


def second_state(strategy, round=1):
    """A state that a round has gone into, so that nothing is zero."""
    state = strategy.first_state(INITIAL)
    return strategy.combine(state, clients(strategy, state, seed=77)[0], 5) if round else state


def clients(
    strategy, state, seed, round=1, used=(ALL, ALL, ALL), examples=(1, 3, 6), ranks=(RANK,) * 3
):
    """A round's updates, and each client's dense change after training."""
    updates, ends = [], []
    for number, (experts, size) in enumerate(zip(used, examples, strict=True)):
        task, local = start_of(strategy, state, round, client=number, rank=ranks[number])
        after = trained_by(local, seed + number, experts)
        updates.append(update_of(task, local, after, experts, size))
        ends.append(dense(after_of(local, after)))
    return updates, ends


def check_exact(strategy):
    """The state's product is the mean of the clients' products, weighted by their examples.

    Whatever their ranks, where those may differ.
    """
    mixed = [(2, RANK, RANK), (RANK, 2, 3)] if strategy.mixed_ranks else []
    for round, ranks in [(1, (RANK,) * 3), (2, (RANK,) * 3), *((1, ranks) for ranks in mixed)]:
        state = second_state(strategy)
        used = (ALL, ((0,), (1, 2)), ((1,), (0, 1)))
        updates, ends = clients(strategy, state, 10, round, used, ranks=ranks)
        new = strategy.combine(state, updates, 3)
        wanted = {
            name: sum(n * end[name] for n, end in zip((1, 3, 6), ends, strict=True)) / 10
            for name in ends[0]
        }
        close(served(strategy, new), wanted)


def check_equal_updates(strategy):
    """When all clients end at the same place, that is the new state."""
    state = second_state(strategy)
    updates, ends = [], []
    for number in range(3):
        task, local = start_of(strategy, state, 3, number)
        after = trained_by(local, 20)
        updates.append(update_of(task, local, after, examples=1 + number))
        ends.append(dense(after_of(local, after)))
    close(served(strategy, strategy.combine(state, updates, 3), 4), ends[0])


def check_linear(strategy):
    """The state moves by a mean: moves of sums of updates are the sums of their moves."""
    for ranks in [(RANK,) * 3, *([(2, RANK, 3)] if strategy.mixed_ranks else [])]:
        state = second_state(strategy)
        used = (ALL, ((0,), (1, 2)), ((1,), (0, 1)))
        these, those = (clients(strategy, state, seed, 1, used, ranks=ranks)[0] for seed in (1, 8))
        sums = [replace(u, delta=u.delta + v.delta) for u, v in zip(these, those, strict=True)]
        zeros = [replace(u, delta=u.delta - u.delta) for u in these]
        ends = [strategy.combine(state, us, 3).flat for us in (sums, zeros, these, those)]
        torch.testing.assert_close(ends[0] + ends[1], ends[2] + ends[3], rtol=1e-5, atol=1e-5)


def check_maskable(strategy):
    """The sums of `weigh(update)` times update, and of `weigh(update)`, are all that counts."""
    state = second_state(strategy)
    updates = clients(strategy, state, 25, 3, (ALL, ((0,), (1, 2)), ((1,), (1, 2))))[0]
    weights = [strategy.weigh(update) for update in updates]
    found = strategy.combine(state, updates, 3).views()
    for entry in updates[0].delta.layout.entries:
        total, over = torch.zeros(entry.shape, dtype=torch.float64), torch.zeros(())
        for update, weight in zip(updates, weights, strict=True):
            share = torch.as_tensor(weight.shared)
            if entry.layer is not None:
                share = weight.experts[entry.layer].reshape(-1, *[1] * (len(entry.shape) - 1))
            total, over = total + share * update.delta.views()[entry.name], over + share
        wanted = state.views()[entry.name] + total / over.where(over > 0, 1)
        torch.testing.assert_close(found[entry.name].double(), wanted, rtol=1e-5, atol=1e-6)


def check_discount(strategy):
    """An update on time is worth all of itself, a later one no more than an earlier one."""
    state = second_state(strategy)
    update = clients(strategy, state, 35)[0][0]
    assert strategy.discount(update, 0) is update
    sizes = [strategy.discount(update, late).delta.flat.norm() for late in range(5)]
    assert all(later <= sooner for sooner, later in pairwise(sizes))


def check_continues(strategy):
    """Clients send the same tensors in every round."""
    sent = [layouts_of(strategy, round).update.digest for round in (1, 2, 3, 4)]
    assert len(set(sent)) == 1


def check_personal(strategy):
    """Clients keep a part, and compute with it in the next round."""
    state = strategy.first_state(INITIAL)
    task, local = start_of(strategy, state)
    assert local.layouts.own is not None
    local.finish(trained_by(local, 37), counts_of(ALL))
    again = strategy.local(replace(task, round=2), layouts_of(strategy, 2), INITIAL, local.own)
    assert not torch.equal(again.start.flat, local.start.flat)


def check_routers(strategy):
    """Clients compute with LoRA and shifts of routers alone, unless routers are changed."""
    kinds = {entry.kind for entry in layouts_of(strategy, 1).model.entries}
    assert (kinds <= {"A", "B", "shift"}) != strategy.changes_routers


def check_corrects(strategy):
    """Clients change gradients if and only if that is said."""
    _, local = start_of(strategy, strategy.first_state(INITIAL))
    assert (type(local).correct is not Local.correct) == strategy.corrects


def narrows(kind):
    """Whether clients compute gradients of some of the experts that tokens reach alone."""
    strategy = made(kind)
    return start_of(strategy, strategy.first_state(INITIAL))[1].backward is not None


def check_learners(strategy):
    """A client that used an expert and did not train it does not count for it."""
    state, updates, learnt = second_state(strategy), [], torch.zeros(0)
    for number, each in enumerate((strategy, replace(strategy, per_choice=1))):
        task, local = start_of(each, state, client=number)
        updates.append(update_of(task, local, trained_by(local, 33 + number)))
        learnt = local.backward.learnt > 0
    assert learnt.any()
    assert not learnt.all()
    both, one = (strategy.combine(state, us, 2).views() for us in (updates, updates[:1]))
    for entry in state.layout.entries:
        if entry.layer is not None:
            same = (both[entry.name] == one[entry.name]).flatten(1).all(1)
            assert torch.equal(same, ~learnt[entry.layer]), entry.name


def check_size(strategy):
    """A client of size 2 n counts as two clients of size n, and one of size 0 as none."""
    _check_whole_and_halves(strategy)
    state = second_state(strategy)
    updates = clients(strategy, state, 60)[0]
    absent = replace(updates[0], examples=0)
    pair = [strategy.combine(state, us, 3) for us in ([absent, *updates[1:]], updates[1:])]
    close(*(served(strategy, new) for new in pair))


def _check_whole_and_halves(strategy):
    state = second_state(strategy)
    one, other = clients(strategy, state, 30, used=(ALL, ALL), examples=(4, 2))[0]
    half = replace(one, examples=2, tokens=one.tokens)
    whole = strategy.combine(state, [one, other], 3)
    split = strategy.combine(state, [half, half, other], 3)
    close(served(strategy, whole), served(strategy, split))


def check_every_client_counts(strategy):
    """Leaving out any one client changes the result."""
    state = second_state(strategy)
    updates = clients(strategy, state, 40)[0]
    whole = strategy.combine(state, updates, 3).flat
    for number in range(3):
        rest = updates[:number] + updates[number + 1 :]
        assert not torch.equal(strategy.combine(state, rest, 3).flat, whole), number


def check_order(strategy):
    """The order of clients is irrelevant."""
    state = second_state(strategy)
    updates = clients(strategy, state, 50)[0]
    pair = [strategy.combine(state, us, 3) for us in (updates, updates[::-1])]
    close(*(served(strategy, new) for new in pair))


def check_untouched(strategy):
    """An expert that nobody used keeps every bit; those that were used do not."""
    state = second_state(strategy)
    used = (((0,), (1,)), ((0, 1), (1,)), ((1,), (1,)))
    new = strategy.combine(state, clients(strategy, state, 70, 3, used)[0], 3)
    moved = 0
    for entry, before in state.layout.views(state.flat):
        after = new.views()[entry.name]
        if entry.layer is not None:
            idle = [2] if entry.layer == 0 else [0, 2]
            assert torch.equal(after[idle], before[idle]), entry.name
            moved += not torch.equal(after, before)
    assert moved


def check_empty(strategy):
    """Without updates there is nothing to combine, and the strategy says so."""
    with pytest.raises(AggregationError, match="no client updates"):
        strategy.combine(strategy.first_state(INITIAL), iter(()), 3)
