"""Owners with rows of their own, in one process and as nodes of a grid."""

from dataclasses import replace
from pathlib import Path

from fake_grid import FakeGrid

from fedmoe.report.ledger import read_ledger
from fedmoe.runs.session import run
from server.settings import Settings
from server.transport import GridTransport

OWNERS = {"attic": 14, "barn": 23, "cellar": 11, "den": 17, "foyer": 9}


EXPERIMENT = """\
name: owners
rounds: 3
clients_per_round: 4
model: {{path: {model}}}
adapter: {{rank: 4, alpha: 8.0}}
data: {{name: federated, path: {rows}}}
budget: {{default: low, tiers: {{high: {{top_k: 4, clients: [barn]}}, low: {{top_k: 1}}}}}}
training: {{steps: 2, batch_size: 4, probe_examples: 4}}
evaluation: {{max_new_tokens: 2, metric: [exact_match, token_f1]}}
membership: {{least: 5}}
simulation: {{folder: {runs}}}
"""


def nodes_of(owners, *parts):
    """Node configs, each with the files of some owners."""
    return [
        {"name": f"node-{n}", "data": " ".join(f"{name}={owners}/{name}.jsonl" for name in part)}
        for n, part in enumerate(parts)
    ]


def on_nodes(
    experiment, folder, *configs, resume="no", display=None, made=None, transport=GridTransport
):
    """Run over a grid of nodes with these configs; the server's config says nothing of paths."""
    made = made or FakeGrid(*configs)

    def workers(server, scorer, _):
        settings = Settings(num_nodes=len(configs), node_seconds=5.0)
        return transport(made, server, scorer, settings, clock=made.clock)

    data = replace(experiment.data, path="")
    simulation = replace(experiment.simulation, folder=str(folder))
    experiment = replace(experiment, data=data, simulation=simulation)
    code = Path(__file__).parents[2] / "clients"
    return run(experiment, display, workers, resume, nodes_code=code), made


def kinds(folder, kind):
    return [record for record in read_ledger(folder / "ledger.jsonl") if record["kind"] == kind]


def digest(folder):
    return kinds(folder, "end")[0]["adapter_sha256"]
