"""How long a client trains and at which rate: epochs, schedules, tokens per step."""

import json
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from fake_grid import FakeGrid
from sides import run_over

from fedmoe.comparison.baselines import BASELINES
from fedmoe.config import load_experiment
from fedmoe.data.text import Tokens, training_batches
from fedmoe.errors import ConfigError, WireError
from fedmoe.messages.codec import pack_update
from fedmoe.rounds import plan_round
from fedmoe.runs.costs import expected_tokens
from fedmoe.runs.local.in_process import InProcess
from fedmoe.runs.prepare import prepare
from fedmoe.seeds import numpy_rng
from fedmoe.training import client as training_client
from fedmoe.training.settings import MOST_SUMMED, Training
from server.settings import Settings
from server.transport import GridTransport

EPOCHS = ("training.steps=20", "training.epochs=1.5")


@pytest.fixture(scope="module")
def experiment_of(tmp_path_factory, tiny_folder):
    """A function from overrides to an experiment of three clients of unlike sizes."""
    home = tmp_path_factory.mktemp("length")
    rows = [
        {
            "prompt": f"what is {n} plus {n}",
            "response": f"{2 * n}",
            "site": f"site {min(n // 4, 2)}",
        }
        for n in range(40)
    ]
    (home / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (home / "length.yaml").write_text(
        f"""\
rounds: 2
model: {{path: {tiny_folder}}}
adapter: {{rank: 2, alpha: 4.0}}
data: {{name: files, path: {home / "rows.jsonl"}, label: site}}
partition: {{name: natural, num_clients: 3}}
aggregation: {{name: fedavg}}
training: {{batch_size: 4, probe_examples: 2}}
evaluation: {{every: 0, validation_examples: 2, test_examples: 2, max_new_tokens: 1}}
"""
    )
    return lambda *overrides: load_experiment(home / "length.yaml", overrides)


@pytest.fixture(scope="module")
def in_epochs(experiment_of):
    return prepare(experiment_of(*EPOCHS))


def tasks_of(prepared):
    server = prepared.server
    return plan_round(server.first_state(), server.members, 3, 0, server.send_to)


@pytest.mark.parametrize("rows", [1, 3, 4, 10])
def test_a_whole_epoch_trains_on_every_row_once(rows):
    made = Training(epochs=2, batch_size=4, accumulation=1).on(rows)
    batches = training_batches(
        [Tokens((n, 1), 1) for n in range(rows)], 4, 0, numpy_rng(0, "epochs")
    )
    seen = Counter(x for _ in range(made.steps) for x in next(batches).input_ids[:, 0].tolist())
    assert seen == dict.fromkeys(range(rows), 2)


def test_steps_of_an_epoch_are_rounded_up_and_at_least_one():
    assert Training(epochs=0.7, batch_size=1).on(10).steps == 7  # .7 * 10 is a little over 7
    assert Training(epochs=1, batch_size=4, accumulation=2).on(10).steps == 2
    assert Training(epochs=0.01, batch_size=4).on(1).steps == 1
    assert Training(steps=7).on(10) == Training(steps=7)


def test_clients_of_unlike_sizes_take_unlike_steps_and_the_server_expects_them(in_epochs):
    sizes = {client: len(rows) for client, rows in in_epochs.client.rows.items()}
    assert len(set(sizes.values())) > 1
    for task in tasks_of(in_epochs):
        wanted = math.ceil(1.5 * math.ceil(sizes[task.client] / 4))
        message = in_epochs.client.answer(task)
        assert in_epochs.server.read(message, task).steps == wanted
        lengths = in_epochs.server.facts.lengths_of(task.client)
        micro_batches = wanted * sum(lengths) / math.ceil(len(lengths) / 4)
        assert expected_tokens(lengths, in_epochs.setup.training)[0] == micro_batches


@pytest.mark.parametrize(("change", "said"), [({"steps": 99}, "99 steps; expected"), ({}, "")])
def test_a_client_cannot_claim_other_steps_than_its_rows_make(in_epochs, change, said):
    task = tasks_of(in_epochs)[0]
    update = in_epochs.client.train(task)
    message = pack_update(replace(update, **change))
    if said:
        with pytest.raises(WireError, match=said):
            in_epochs.server.read(message, task)
    server = in_epochs.server
    assert server.limits(task, 10_000) == server.limits(task, update.examples)
    # Where clients alone know their rows, as many steps follow from as many examples.
    server = replace(server, facts=replace(server.facts, lengths=()))
    few, many = (server.limits(task, n) for n in (update.examples, 10_000))
    assert few.delta < many.delta
    assert (few.steps, many.steps) == (update.steps, 3750)


def test_a_bound_over_very_many_steps_is_made_of_few():
    betas = {"learning_rate": 1e-3, "betas": (0.9, 0.99)}
    summed = Training(steps=MOST_SUMMED, **betas).reach()
    more = Training(steps=10 * MOST_SUMMED, **betas).reach()
    assert 10 * summed <= more < 10.01 * summed
    assert Training(steps=2 * MOST_SUMMED, betas=(0.9, 0.5)).reach() == math.inf


def test_a_grid_gives_the_bits_of_one_process_in_epochs(in_epochs):
    grid = FakeGrid({})
    over = GridTransport(grid, in_epochs.server, in_epochs.scorer, Settings(), grid.clock)
    here = InProcess(in_epochs.server, in_epochs.scorer)
    states = [
        run_over(in_epochs, way, num_rounds=1, clients_per_round=3).adapter.digest()
        for way in (here, over)
    ]
    assert states[0] == states[1]


def test_all_data_trains_as_many_epochs_as_a_rounds_clients(experiment_of):
    e = experiment_of(*EPOCHS, "clients_per_round=2")
    assert BASELINES["all_data"](e, 4).training.epochs == 1.0


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["training.epochs=1", "training.steps=5"], "training.steps: has no effect beside"),
        (["training.epochs=1", "training.tokens_per_step=50"], "training.epochs: counts"),
        (["training.accumulation=2", "training.tokens_per_step=50"], "training.accumulation:"),
        (["training.schedule=constant", "training.final_share=0.5"], "training.final_share:"),
        (["training.epochs=1", "budget.tiers={low: {top_k: 1, steps: 5}}"], "low.steps: has no"),
    ],
)
def test_settings_without_effect_are_refused(experiment_of, overrides, said):
    with pytest.raises(ConfigError, match=said):
        experiment_of(*overrides)


def test_the_schedules_fall_from_the_peak_to_their_share():
    def rates(schedule, **settings):
        made = Training(steps=4, warmup_steps=0, learning_rate=1.0, schedule=schedule, **settings)
        return [made.rate(step, round, 3) for round in (1, 2, 3) for step in range(4)]

    done = [n / 12 for n in range(12)]
    assert rates("linear") == [1 - 0.9 * d for d in done]
    slow = [0.1 + 0.9 * (1 + math.cos(math.pi * d)) / 2 for d in done]
    assert rates("cosine") == pytest.approx(slow, rel=1e-12)
    assert rates("constant") == [1.0] * 12


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_every_schedule_warms_up_in_every_round(schedule):
    made = Training(steps=8, warmup_steps=3, learning_rate=1.0, schedule=schedule)
    bare = replace(made, warmup_steps=0)
    for round in (1, 5):
        shares = [made.rate(s, round, 9) / bare.rate(s, round, 9) for s in range(5)]
        assert shares == pytest.approx([0.25, 0.5, 0.75, 1, 1])


def test_a_step_takes_micro_batches_until_it_has_its_tokens(in_epochs, monkeypatch):
    steps = []
    accumulate = training_client._accumulate
    monkeypatch.setattr(
        training_client,
        "_accumulate",
        lambda model, batches, *rest: steps.append(batches) or accumulate(model, batches, *rest),
    )
    model, rows = in_epochs.setup.model, in_epochs.client.rows[0]
    (task, *_) = tasks_of(in_epochs)
    settings = Training(steps=5, batch_size=1, tokens_per_step=25)
    training_client.train_client(model, rows, 0, task, settings, 2, 0)
    tokens = [[model.num_tokens(batch) for batch in batches] for batches in steps]
    assert len(tokens) == 5
    assert all(sum(found) >= 25 > sum(found[:-1]) for found in tokens)
    assert len({len(found) for found in tokens}) >= 1
    mean = sum(map(sum, tokens)) / sum(map(len, tokens))
    assert abs(settings.micro_batches(mean) - sum(map(len, tokens)) / 5) <= 1


def test_a_step_of_tokens_has_the_bits_of_the_same_micro_batches(in_epochs):
    """Of rows of one length a step of N tokens is an accumulation of a known number."""
    model, (task, *_) = in_epochs.setup.model, tasks_of(in_epochs)
    rows = [Tokens((n, 3, 4, 5, 6), 2) for n in range(7, 15)]
    ways = ({"tokens_per_step": 9}, {"accumulation": 3})
    one, other = (
        training_client.train_client(
            model, rows, 0, task, Training(steps=2, batch_size=1, **way), 2, 0
        ).delta.flat
        for way in ways
    )
    assert torch.equal(one, other)
