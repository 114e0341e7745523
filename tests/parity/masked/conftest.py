"""Runs of five clients whose sums are masked."""

import pytest
from masked_rounds import tasks_of
from sums import sums_config

from fedmoe.config import load_experiment
from fedmoe.rounds import finish_round
from fedmoe.runs.local.in_process import InProcess
from fedmoe.runs.prepare import prepare


@pytest.fixture(scope="module")
def prepared_of(tmp_path_factory, tiny_folder):
    """A function from overrides to a prepared run of five clients."""
    home = tmp_path_factory.mktemp("masked")
    rest = f"""\
rounds: 2
partition: {{name: natural, num_clients: 5}}
budget: {{tiers: {{high: {{top_k: 2}}, low: {{top_k: 1}}}}}}
aggregation: {{name: flame, temperature: 1}}
secure_aggregation: {{threshold: 0.51}}
training: {{steps: 1, batch_size: 2, probe_examples: 2}}
evaluation: {{every: 0, validation_examples: 2, test_examples: 2, max_new_tokens: 1}}
simulation: {{folder: {home / "runs"}}}
"""
    config = sums_config(home, tiny_folder, rest, rows=40, sites=5)
    return lambda *more: prepare(load_experiment(config, more), on_nodes=True)


@pytest.fixture(scope="module")
def prepared(prepared_of):
    return prepared_of()


@pytest.fixture(scope="module")
def clear(prepared):
    """A function from clients to the next state of their clear updates."""
    tasks, server = tasks_of(prepared), prepared.server
    updates = list(InProcess(server, prepared.scorer)(tasks))
    strategy = prepared.setup.experiment.aggregation

    def state(clients):
        some = [update for update in updates if update.client in clients]
        return finish_round(server.first_state(), strategy, some).adapter.flat

    return state
