"""Clients with rows of their own: the same bits in one process and on nodes, and nobody's loss."""

import json
from dataclasses import replace

import pytest
from fake_grid import FakeGrid
from flwr.app import MessageType

from fedmoe.config import load_experiment
from fedmoe.messages.rows import RowCounts
from fedmoe.report.ledger import read_ledger
from fedmoe.runs.display import Display
from fedmoe.runs.session import run
from server.settings import Settings
from server.transport import GridTransport

OWNERS = {"attic": 14, "barn": 23, "cellar": 11, "den": 17, "eaves": 9}

EXPERIMENT = """\
name: owners
rounds: 3
clients_per_round: 4
model: {{path: {model}}}
adapter: {{rank: 4, alpha: 8.0}}
data: {{name: federated, path: {rows}}}
budget: {{default: low, tiers: {{high: {{top_k: 4, clients: [barn]}}, low: {{top_k: 1}}}}}}
training: {{steps: 2, batch_size: 4}}
evaluation: {{max_new_tokens: 2}}
membership: {{least: 5}}
simulation: {{folder: {runs}}}
"""


@pytest.fixture(scope="module")
def owners(tmp_path_factory):
    """A folder with a file for each owner."""
    folder = tmp_path_factory.mktemp("owners")
    for name, number in OWNERS.items():
        lines = [
            json.dumps({"prompt": f"{name} asks {n}", "response": f"{name} says {n}"})
            for n in range(number)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def experiment(tmp_path_factory, tiny_folder, owners):
    folder = tmp_path_factory.mktemp("federated")
    path = folder / "experiment.yaml"
    path.write_text(EXPERIMENT.format(model=tiny_folder, rows=owners, runs=folder / "runs"))
    return load_experiment(path)


@pytest.fixture(scope="module")
def plain(experiment):
    """The folder of the run in this process."""
    return run(experiment)


def nodes_of(owners, *parts):
    """Node configs, each with the files of some owners."""
    return [
        {"name": f"node-{n}", "data": " ".join(f"{name}={owners}/{name}.jsonl" for name in part)}
        for n, part in enumerate(parts)
    ]


def on_nodes(experiment, folder, *configs, resume="no", **grid):
    """Run over a grid of nodes with these configs; the server's config says nothing of paths."""
    made = FakeGrid(*configs, **grid)

    def workers(server, scorer, _):
        settings = Settings(num_nodes=len(configs), node_seconds=5.0)
        return GridTransport(made, server, scorer, settings, clock=made.clock)

    data = replace(experiment.data, path="")
    simulation = replace(experiment.simulation, folder=str(folder))
    experiment = replace(experiment, data=data, simulation=simulation)
    code = __import__("pathlib").Path(__file__).parents[2] / "clients"
    return run(experiment, None, workers, resume, nodes_code=code), made


def kinds(folder, kind):
    return [record for record in read_ledger(folder / "ledger.jsonl") if record["kind"] == kind]


def digest(folder):
    return kinds(folder, "end")[0]["adapter_sha256"]


def test_three_nodes_give_the_bits_of_the_folder(experiment, plain, owners, tmp_path):
    configs = nodes_of(owners, ["den", "attic"], ["barn"], ["eaves", "cellar"])
    folder, grid = on_nodes(experiment, tmp_path, *configs)
    assert digest(folder) == digest(plain)
    for kind in ("evaluation", "rows", "roster"):
        mine, theirs = kinds(folder, kind), kinds(plain, kind)
        assert [{**r, "seconds": 0} for r in mine] == [{**r, "seconds": 0} for r in theirs]
    served = {message.metadata.message_type for message in grid.sent}
    assert {MessageType.TRAIN, MessageType.EVALUATE} <= served


def test_every_row_is_its_owners(plain):
    rows = {r["name"]: RowCounts(**r["rows"]) for r in kinds(plain, "rows")}
    assert {name: counts.read for name, counts in rows.items()} == OWNERS
    assert all(counts.train > counts.read / 2 for counts in rows.values())
    for line in kinds(plain, "client"):
        assert line["examples"] == rows[line["name"]].train


def test_the_sums_of_the_owners_are_the_tiers_means(plain):
    for line in kinds(plain, "evaluation"):
        clients, number = line["clients"], sum(c["examples"] for c in line["clients"])
        assert line["examples"] == number
        mean = sum(c["score"] * c["examples"] for c in clients) / number
        assert line["score"] == pytest.approx(mean)
    tested = [line for line in kinds(plain, "evaluation") if line["split"] == "test"]
    names = {c["name"] for line in tested for c in line["clients"]}
    assert names == {*OWNERS}


class Interrupted(Display):
    """Ends the run as the third round begins."""

    def planned(self, tasks):
        if tasks[0].round == 3:
            raise KeyboardInterrupt


def test_a_resumed_run_lists_the_rows_of_clients_that_answered_before(
    experiment, tmp_path, monkeypatch
):
    monkeypatch.setattr("fedmoe.runs.identity.code_digest", lambda *folders: "abc123")
    simulation = replace(experiment.simulation, folder=str(tmp_path))
    few = replace(experiment.evaluation, every=0, clients=1)
    one = replace(experiment, clients_per_round=2, evaluation=few, simulation=simulation)
    with pytest.raises(KeyboardInterrupt):
        run(one, Interrupted())
    folder = run(one, resume="auto")
    said = [line["client"] for line in kinds(folder, "rows")]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [c["client"] for c in manifest["clients"]] == sorted({*said})
    assert len(said) == len({*said})
    later = {line["client"] for line in kinds(folder, "client") if line["round"] == 3}
    assert {*said} > later
