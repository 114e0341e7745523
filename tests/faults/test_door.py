"""The door: ten thousand damaged messages, and lies that only a run's own limits expose."""

import json
import random
from dataclasses import replace

import pytest
import torch
from sides import changed
from sums import write_sums
from uploads import LAYOUT, counts_of, deltas_of, task_for, update_of

from fedmoe.adapter import Adapter
from fedmoe.aggregation import FedAvg
from fedmoe.errors import WireError
from fedmoe.messages.codec import pack_update, unpack_update
from fedmoe.messages.compression import Bf16, Int4, Int8, NoCompression, TopK
from fedmoe.messages.records import Failure, Message
from fedmoe.messages.validation import Limits
from fedmoe.rounds import ServerState, finish_round, plan_round
from fedmoe.runs.local.answers import read
from fedmoe.runs.prepare import prepare
from fedmoe.training.settings import Training

SETTINGS = [NoCompression(), Bf16(), Int8(), Int4(), TopK(share=0.2)]
MESSAGES = 2_500
"""A setting; with all of them more than ten thousand."""


def damaged(message, rng):
    """The message with one thing wrong: bytes, its length, a scalar, or the JSON itself."""
    data, scalars = bytearray(message.buffer), message.scalars
    kind = rng.randrange(6)
    if kind == 0 and data:
        for _ in range(rng.choice([1, 1, 4, 64])):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == 1:
        data = data[: rng.randrange(len(data) + 1)]
    elif kind == 2:
        data += rng.randbytes(rng.choice([1, 8, 1000]))
    elif kind == 3:
        data = bytearray(rng.randbytes(len(data)))
    elif kind == 4:
        values = json.loads(scalars)
        name = rng.choice(list(values))
        strange = [None, -1, 0, 1, 2**63, 1e308, "", "x" * 50, [], {}, True, 10**30]
        values[name] = rng.choice(strange)
        scalars = json.dumps(values)
    else:
        at = rng.randrange(len(scalars))
        scalars = scalars[:at] + rng.choice('{}[]",:0 a\\\x00') + scalars[at + 1 :]
    return Message(scalars, bytes(data))


@pytest.mark.parametrize("upload", SETTINGS, ids=lambda upload: upload.name)
def test_no_damaged_message_crashes_the_server_or_gets_anything_absurd_in(upload):
    rng = random.Random(upload.name)
    update = update_of(deltas_of(3), counts_of([[0, 1, 2], [1, 3]]))
    task = task_for(update)
    message = pack_update(update, upload)
    state = ServerState(0, task.adapter, {"low": torch.ones(LAYOUT.num_layers)})
    before, refused = state.adapter.digest(), dict[str, int]()
    for _ in range(MESSAGES):
        try:
            arrived = unpack_update(damaged(message, rng), LAYOUT, task, upload)
        except WireError as error:
            refused[error.code] = refused.get(error.code, 0) + 1
            continue
        assert arrived.delta.flat.abs().max() <= 1e4
        assert arrived.counts.sum(1).eq(arrived.tokens * task.top_k).all()
        assert (arrived.round, arrived.client) == (task.round, task.client)
        after = finish_round(state, FedAvg(), [arrived])
        assert after.adapter.flat.isfinite().all()
    assert state.adapter.digest() == before
    assert sum(refused.values()) > MESSAGES // 2
    known = {
        "message",
        "layout",
        "size",
        "task",
        "scalars",
        "counts",
        "examples",
        "not_finite",
        "too_large",
    }
    assert refused.keys() <= known
    assert {"size", "counts", "scalars", "task"} <= refused.keys()


@pytest.mark.parametrize(
    ("lie", "code"),
    [
        ({"examples": 10**7}, "examples"),
        ({"round": 7}, "task"),
        ({"client": 1}, "task"),
        ({"top_k": 9}, "task"),
        ({"top_k": 0}, "task"),
        ({"top_k": 1}, "counts"),  # fewer may be what memory sufficed for, were it true
        ({"tokens": 10**6}, "counts"),
        ({"steps": 0}, "scalars"),
        ({"seconds": float("nan")}, "scalars"),
        ({"seconds": -1.0}, "scalars"),
        ({"layout": "0" * 16}, "layout"),
        ({"extra": 1}, "message"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_lie_is_quarantined_under_its_code_and_the_round_goes_on(lie, code):
    update = update_of(deltas_of(3), counts_of([[0, 1, 2], [1, 3]]))
    message = pack_update(update)
    message = replace(message, scalars=json.dumps(json.loads(message.scalars) | lie))
    with pytest.raises(WireError) as caught:
        unpack_update(message, LAYOUT, task_for(update), limits=Limits(examples=10**6))
    assert caught.value.code == code


def scaled(message, layout, task, factor):
    """The message with its delta times `factor`."""
    update = unpack_update(message, layout, task)
    return pack_update(replace(update, delta=Adapter(layout, update.delta.flat * factor)))


def test_a_client_that_boosts_its_update_is_quarantined_and_the_others_count(experiment_of):
    run = prepare(experiment_of("training.steps=2"))
    tasks = plan_round(run.server.first_state(), run.server.members, 3, 0, run.server.send_to)
    layout = run.setup.model.layout
    answers = [run.client.answer(task) for task in tasks]
    honest = [read(run.server, answer, task) for answer, task in zip(answers, tasks, strict=True)]
    assert not any(isinstance(a, Failure) for a in honest)
    answers[1] = scaled(answers[1], layout, tasks[1], 1000.0)
    heard = [read(run.server, answer, task) for answer, task in zip(answers, tasks, strict=True)]
    assert isinstance(heard[1], Failure)
    assert heard[1].code == "too_large"
    assert "more than 2 steps of AdamW at this round's rate can move" in heard[1].reason
    rest = [a for a in heard if not isinstance(a, Failure)]
    state = run.server.first_state()
    strategy = run.setup.experiment.aggregation
    pair = [finish_round(state, strategy, us).adapter for us in (rest, [honest[0], honest[2]])]
    assert pair[0].digest() == pair[1].digest()


def test_the_bound_is_far_above_what_training_does(experiment_of):
    run = prepare(experiment_of("training.steps=8", "training.warmup_steps=0"))
    task = plan_round(run.server.first_state(), run.server.members, 1, 0, run.server.send_to)[0]
    flat, limits = run.client.train(task).delta.flat, run.server.limits(task)
    assert limits.delta / 60 < flat.abs().max().item() < limits.delta / 3
    norm = limits.mean * flat.count_nonzero().item() ** 0.5
    assert norm / 6 < flat.norm().item() < norm / 2


@pytest.mark.parametrize(
    "overrides",
    [
        ["aggregation={name: scaffold}"],
        ["aggregation={name: hetlora}"],
        ["upload.name=int4"],
        ["upload.name=int8", "upload.error_feedback=true"],
        ["upload.name=top_k"],
        ["training.weight_decay=0.1"],
        ["aggregation={name: fedsa_lora}", "training.weight_decay=0.1"],
    ],
)
def test_whatever_is_sent_a_boosted_update_is_refused_and_an_honest_one_is_not(
    experiment_of, overrides, tmp_path
):
    run = changed(prepare(experiment_of("training.steps=2", *overrides)), state_folder=tmp_path)
    state = run.server.first_state()
    layouts, upload = run.setup.layouts("high", 1), run.setup.experiment.upload
    for number in (1, 2):  # in the second round there is a residual
        task = plan_round(
            replace(state, round=number - 1), run.server.members, 1, 0, run.server.send_to
        )[0]
        answer = run.client.answer(task)
        assert not isinstance(read(run.server, answer, task), Failure)
    update = unpack_update(answer, layouts.update, task, upload)
    boosted = Adapter(layouts.update, update.delta.flat * 10**4)
    heard = read(run.server, pack_update(replace(update, delta=boosted), upload), task)
    assert isinstance(heard, Failure)
    assert heard.code == "too_large"
    assert "more than 2 steps of AdamW at this round's rate can move" in heard.reason


def test_a_control_is_a_gradient_of_any_size(experiment_of, tmp_path):
    run = prepare(experiment_of("training.steps=2", "aggregation={name: scaffold}"))
    run = changed(run, state_folder=tmp_path)
    task = plan_round(run.server.first_state(), run.server.members, 1, 0, run.server.send_to)[0]
    layout = run.setup.layouts("high", 1).update
    update = unpack_update(run.client.answer(task), layout, task)
    flat = update.delta.flat.clone()
    flat[len(flat) // 2 :] *= 1000
    assert not isinstance(
        read(run.server, pack_update(replace(update, delta=Adapter(layout, flat))), task), Failure
    )
    flat[flat != 0] += 2e4
    heard = read(run.server, pack_update(replace(update, delta=Adapter(layout, flat))), task)
    assert isinstance(heard, Failure)


def test_what_top_k_owes_adds_up_over_rounds(experiment_of):
    run = prepare(experiment_of("upload.name=top_k"))
    task = plan_round(run.server.first_state(), run.server.members, 1, 0, run.server.send_to)[0]
    training, rounds = run.setup.training, run.setup.experiment.rounds
    for number in (1, 5, 10):
        found = run.server.limits(replace(task, round=number))
        now, peak = training.reach(0.0, number, rounds), training.reach()
        assert found.mean == pytest.approx(1.1 * (now + number * peak))
        assert found.delta == pytest.approx(3 * now + number * peak)


@pytest.mark.parametrize("upload", ["{name: top_k, share: 0.02}", "{name: int4}"])
def test_what_a_client_drops_and_owes_is_no_damage(experiment_of, tmp_path, upload):
    dropping = "aggregation={name: hetlora, decay: 0.5, regularisation: 50.0}"
    run = prepare(experiment_of("training.steps=2", dropping, f"upload={upload}"))
    run = changed(run, state_folder=tmp_path)
    state = run.server.first_state()
    flat = state.adapter.flat + 0.05  # B is not zero any more: there is a tail to drop
    task = plan_round(state, run.server.members, 1, 0, run.server.send_to)[0]
    for number in range(1, 13):
        sent = replace(task, round=number, adapter=Adapter(task.adapter.layout, flat))
        heard = read(run.server, run.client.answer(sent), sent)
        assert not isinstance(heard, Failure), (number, heard)


def test_no_gradients_move_a_value_further_than_the_bound_says():
    for betas in ((0.9, 0.99), (0.9, 0.5), (0.99, 0.9), (0.0, 0.9), (0.9, 0.999)):
        settings = Training(steps=60, betas=betas, learning_rate=0.01, warmup_steps=0)
        found = []
        for silent_from in (1, 2, 5, 60):
            value = torch.nn.Parameter(torch.zeros(1))
            optimizer = torch.optim.AdamW([value], lr=0.01, betas=betas, weight_decay=0.0)
            for step in range(60):
                value.grad = torch.full((1,), 1.0 if step < silent_from else 0.0)
                optimizer.step()
            found.append(abs(value.item()))
        assert 0.04 * settings.reach() < max(found) <= settings.reach() * 1.0001, betas
    assert Training(betas=(0.9, 0.0)).reach() == float("inf")


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_bound_follows_the_rounds_own_rate(schedule):
    settings = Training(steps=10, learning_rate=0.01, warmup_steps=4, schedule=schedule)
    still = replace(settings, betas=(0.0, 0.0))  # each of its steps moves a value by the rate
    for number in (1, 2, 7, 10, 13, 25):  # also beyond the last round, where rates rise again
        rates = [abs(still.rate(step, number, 10)) for step in range(10)]
        one_more = still.reach(0.0, number, 10) / sum(rates)
        assert one_more * 1.0001 >= 1
        assert number > 10 or one_more < 1.4
        assert settings.reach(0.0, number, 10) > sum(rates)


def test_what_decays_is_bounded_by_what_was_sent(experiment_of):
    decay = prepare(experiment_of("training.weight_decay=0.5"))
    server = decay.server
    task = plan_round(server.first_state(), server.members, 1, 0, server.send_to)[0]
    sent = replace(task, adapter=Adapter(task.adapter.layout, task.adapter.flat + 100))
    rates = decay.setup.training.steps * decay.setup.training.learning_rate
    more = server.limits(sent).delta - server.limits(task).delta
    before = task.adapter.largest()
    assert more == pytest.approx(3 * rates * 0.5 * (sent.adapter.largest() - before), rel=1e-4)


@pytest.fixture(scope="module")
def experiment_of(tmp_path_factory, tiny_folder):
    """A function from overrides to a small experiment on a tiny model."""
    from fedmoe.config import load_experiment

    home = tmp_path_factory.mktemp("door")
    write_sums(home, 8, 8)
    (home / "door.yaml").write_text(
        f"""\
name: door
model: {{path: {tiny_folder}}}
adapter: {{rank: 4, alpha: 8.0}}
data: {{name: files, path: {home / "rows.jsonl"}}}
partition: {{name: iid, num_clients: 4}}
budget: {{tiers: {{high: {{top_k: 4}}, low: {{top_k: 1}}}}}}
training: {{batch_size: 4, probe_examples: 4}}
"""
    )
    return lambda *overrides: load_experiment(home / "door.yaml", overrides)


def test_a_learned_factor_moves_no_further_than_its_steps_can():
    update = update_of(deltas_of(3), counts_of([[0, 1, 2], [1, 3]]))
    task, moved = task_for(update), replace(update, rescaler=update.rescaler + 0.5)
    message = pack_update(moved)
    wide, narrow = Limits(rescaler=0.6), Limits(rescaler=0.4)
    assert unpack_update(message, LAYOUT, task, learns_rescaler=True, limits=wide)
    with pytest.raises(WireError, match=r"rescaler moved by 0\.5") as caught:
        unpack_update(message, LAYOUT, task, learns_rescaler=True, limits=narrow)
    assert caught.value.code == "too_large"
