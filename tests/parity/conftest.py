"""One tiny experiment that every transport runs, and what the plain loop makes of it."""

import warnings
from functools import lru_cache

import pytest
from sums import write_sums

with warnings.catch_warnings():
    # flwr 1.41 pins a typer that uses what click 8.4 calls deprecated, and warnings are errors.
    warnings.simplefilter("ignore", DeprecationWarning)
    import flwr.clientapp
    import flwr.serverapp  # noqa: F401

from fedmoe.config import load_experiment
from fedmoe.config.load import to_yaml

EXPERIMENT = """\
name: parity
rounds: 2
model: {{path: {model}}}
adapter: {{rank: 4, alpha: 8.0}}
rescaling: {{name: learned}}
data: {{name: files, path: {rows}, label: kind}}
partition: {{name: dirichlet, num_clients: 4}}
budget: {{tiers: {{high: {{top_k: 4}}, low: {{top_k: 1}}}}}}
training: {{steps: 2, batch_size: 4, probe_examples: 4}}
evaluation: {{every: 0, validation_examples: 2, test_examples: 2, max_new_tokens: 2}}
simulation: {{folder: {runs}}}
"""


@pytest.fixture(scope="session")
def experiment_file(tmp_path_factory, tiny_folder):
    """A YAML file, resolved: four clients of two tiers and unlike data, two rounds."""
    folder = tmp_path_factory.mktemp("parity")
    write_sums(folder, 12, 8, "it is {}", kinds=True)
    path = folder / "experiment.yaml"
    path.write_text(
        EXPERIMENT.format(model=tiny_folder, rows=folder / "rows.jsonl", runs=folder / "runs")
    )
    path.write_text(to_yaml(load_experiment(path)))
    return path


@pytest.fixture(scope="session")
def prepared(experiment_file):
    """The experiment's model, data and members in this process."""
    from fedmoe.runs.prepare import prepare

    return prepare(load_experiment(experiment_file))


@pytest.fixture(scope="session")
def plain_digest(prepared):
    """The digest of the last adapter of the plain loop, in this process."""
    from fedmoe.runs.local.in_process import InProcess

    return run_with(prepared, InProcess(prepared.server, prepared.scorer)).adapter.digest()


def run_with(prepared, transport):
    """The state after all rounds over a transport."""
    from sides import run_over

    experiment, members = prepared.setup.experiment, prepared.server.members
    return run_over(
        prepared, transport, num_rounds=experiment.rounds, clients_per_round=len(members)
    )


@pytest.fixture(scope="session")
def run_over(prepared):
    """`run_with` for tests."""
    return lambda transport: run_with(prepared, transport)


@pytest.fixture(scope="session")
def known(prepared):
    """Every client's reply to its task of the first round, as its node made it."""
    from fake_grid import FakeGrid, client_of

    from fedmoe.rounds import plan_round
    from server.settings import Settings
    from server.transport import GridTransport

    found = {}

    def keep(request, reply):
        found[client_of(request)] = reply
        return reply

    grid = FakeGrid({}, spoil=keep)
    tasks = plan_round(
        prepared.server.first_state(), prepared.server.members, 4, prepared.setup.experiment.seed
    )
    with pytest.MonkeyPatch.context() as patch:
        spare_digests(patch)
        list(GridTransport(grid, prepared.server, prepared.scorer, Settings(), grid.clock)(tasks))
    del found[None]
    return found


@pytest.fixture(scope="session", autouse=True)
def processes_of_their_own():
    """Nodes share a process here: each keeps its model and data, as in one of its own."""
    from clients import resident

    each = lru_cache(maxsize=8)(resident.resident.__wrapped__)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resident, "resident", each)
        yield


def spare_digests(patch):
    """Do not read all weights time and again; other tests have the real digest."""
    for place in ("server.transport", "clients.about", "clients.app"):
        patch.setattr(f"{place}.code_digest", lambda *folders: "abc123")


@pytest.fixture
def quick_digest(monkeypatch):
    """`spare_digests` for a test."""
    spare_digests(monkeypatch)
