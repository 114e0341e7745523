"""The plain loop, Flower's simulation engine and a SuperLink with SuperNodes agree to the bit."""

import sys

import pytest
from federation import Federation

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ends processes through /proc")


@pytest.fixture
def federation(tmp_path):
    federation = Federation(tmp_path)
    yield federation
    federation.stop()


@pytest.mark.slow
def test_the_simulation_engine_gives_the_plain_loops_adapter(
    federation, experiment_file, plain_digest
):
    federation.superlink("--simulation")
    # One Ray actor, which serves all three nodes: most of the time goes into starting actors.
    records = federation.flwr_run(
        "--federation-config",
        "num-supernodes=3 client-resources-num-cpus=1 init-args-num-cpus=1",
        config=experiment_file,
        node_seconds=300,
    )
    assert statuses(records) == ["ok"] * 8
    assert records[-1]["adapter_sha256"] == plain_digest


@pytest.mark.slow
def test_a_superlink_with_two_supernodes_gives_the_plain_loops_adapter(
    federation, experiment_file, plain_digest
):
    federation.superlink()
    for number in range(2):
        federation.supernode(
            "--node-config",
            f"partition-id={number} num-partitions=2",
            home=federation.home / f"node-{number}",
        )
    records = federation.flwr_run(config=experiment_file, num_nodes=2, node_seconds=300)
    assert statuses(records) == ["ok"] * 8
    assert records[-1]["adapter_sha256"] == plain_digest


@pytest.mark.slow
def test_a_run_without_nodes_ends_as_failed_and_says_why(federation, experiment_file):
    federation.superlink()
    runs = federation.folder / "runs"
    outcome = federation.outcome(
        config=experiment_file, node_seconds=1, overrides=f'"simulation.folder={runs}"'
    )
    assert outcome == "finished:failed"
    assert "0 usable node(s) after 1 s" in federation.log("flwr")


def statuses(records):
    return [record["status"] for record in records if record["kind"] == "client"]
