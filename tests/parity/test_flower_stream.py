"""An asynchronous run on real nodes, whose server is killed, against its order in this process."""

import sys

import pytest
from federation import Federation
from recorded import order_of, repeated

from fedmoe.config import load_experiment
from fedmoe.config.load import to_yaml
from fedmoe.report.ledger import read_ledger
from fedmoe.runs.prepare import prepare

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ends processes through /proc")

BUFFERED = [
    "aggregation={name: fedbuff, buffer_size: 2}",
    "rescaling={name: none}",
    "rounds=3",
    "faults=kill-server@1",
]


@pytest.fixture
def federation(tmp_path):
    federation = Federation(tmp_path)
    yield federation
    federation.stop()


@pytest.mark.slow
def test_supernodes_in_any_order_give_the_adapter_of_that_order(
    federation, experiment_file, tmp_path
):
    experiment = load_experiment(experiment_file, [*BUFFERED, f"simulation.folder={tmp_path}/runs"])
    config = tmp_path / "buffered.yaml"
    config.write_text(to_yaml(experiment))
    federation.superlink()
    for number, clients in enumerate(("0,2", "1,3")):
        home = federation.home / f"node-{number}"
        federation.supernode("--node-config", f'clients="{clients}"', home=home)
    nodes = {"num_nodes": 2, "node_seconds": 300}
    assert federation.outcome(config=config, **nodes) == "finished:failed"
    (ledger,) = (tmp_path / "runs").glob("*/ledger.jsonl")
    assert read_ledger(ledger)[-1]["round"] == 1
    records = federation.flwr_run(config=config, resume='"auto"', **nodes)
    order = order_of(records)
    assert [len(order[number]) for number in (1, 2, 3)] == [2, 2, 2]
    assert [r["round"] for r in records if r["kind"] == "resumed"] == [2]
    prepared = prepare(experiment, on_nodes=True)
    assert records[-1]["adapter_sha256"] == repeated(prepared, order).adapter.digest()
