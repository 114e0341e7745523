"""The ServerApp over a grid without Flower's processes: quorum, resuming, and runs that fail."""

import shlex
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from fake_grid import FakeGrid, client_of
from flwr.app import Context, Error, RecordDict
from recorded import order_of, repeated

from fedmoe.config import load_experiment
from fedmoe.devices import Device
from fedmoe.errors import FedMoEError
from fedmoe.progress.table import LiveTable
from fedmoe.report.ledger import read_ledger
from fedmoe.runs.local.in_process import make_transport
from fedmoe.runs.prepare import prepare
from fedmoe.runs.session import run
from server.app import app
from server.log import LogLines
from server.settings import Settings
from server.transport import GridTransport

pytestmark = pytest.mark.usefixtures("quick_digest")

PROJECT = Path(__file__).parents[2]


def serve(grid, experiment_file, folder, overrides="", **changes):
    """The Flower run; an error here is one that Flower reports as the run's."""
    text = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    given = tomllib.loads(text)["tool"]["flwr"]["app"]["config"] | changes
    given |= {
        "config": str(experiment_file),
        "overrides": f"simulation.folder={folder} {overrides}",
    }
    app(grid, Context(1, 1, {}, RecordDict(), given))


def test_a_round_under_quorum_fails_the_run_and_a_resumed_one_has_the_plain_bits(
    experiment_file, plain_digest, tmp_path, monkeypatch
):
    monkeypatch.setattr("fedmoe.runs.identity.code_digest", lambda *folders: "abc123")

    def tired(request, reply):
        bad = client_of(request) == 2 and '"round": 2' in request.content["config"]["scalars"]
        return Error(2, "tired") if bad else reply

    grid, quorum = FakeGrid({"name": "lab"}, spoil=tired), "quorum=0.8"
    with pytest.raises(FedMoEError, match=r"round 2: 3 of 4 .* quorum 0.8 needs 4.*lab: tired"):
        serve(grid, experiment_file, tmp_path, quorum)
    (ledger,) = tmp_path.glob("*/ledger.jsonl")
    cut = read_ledger(ledger)
    assert cut[-1]["kind"] != "end"
    assert [r["code"] for r in cut if r["kind"] == "client" and r["status"] != "ok"] == ["failed"]
    serve(FakeGrid({}), experiment_file, tmp_path, quorum, resume="auto")
    records = read_ledger(ledger)
    assert [r["status"] for r in records if r["kind"] == "client"] == ["ok"] * 8
    assert records[-1]["adapter_sha256"] == plain_digest


def test_a_run_without_nodes_fails_after_a_bounded_wait(experiment_file, tmp_path):
    with pytest.raises(FedMoEError, match=r"0 usable node\(s\) after 0.2 s"):
        serve(FakeGrid(), experiment_file, tmp_path, node_seconds=0.2)
    (ledger,) = tmp_path.glob("*/ledger.jsonl")
    assert read_ledger(ledger)[-1]["kind"] != "end"


def test_a_run_in_which_no_round_had_a_client_is_no_success(experiment_file, tmp_path):
    away = Device(
        label="away",
        peak_flops=1e9,
        memory_bytes=10**9,
        uplink_bytes_per_second=1e6,
        downlink_bytes_per_second=1e6,
        availability=1e-12,
    )
    experiment = load_experiment(experiment_file, [f"simulation.folder={tmp_path}"])
    experiment = replace(experiment, devices={"high": away, "low": away})
    grid = FakeGrid()

    def make_workers(server, scorer, _):
        return GridTransport(grid, server, scorer, Settings(), grid.clock)

    with pytest.raises(FedMoEError, match="No client was available in any of the 2 rounds"):
        run(experiment, LogLines({}), make_workers)


def test_faults_on_purpose_strike_under_flower_as_they_do_in_a_simulation(
    experiment_file, tmp_path, monkeypatch
):
    monkeypatch.setattr("fedmoe.runs.identity.code_digest", lambda *folders: "abc123")
    faults = "faults=drop=.3,corrupt=.3,nan=.2"
    serve(FakeGrid({}), experiment_file, tmp_path / "flower", faults)
    plain = load_experiment(experiment_file, [f"simulation.folder={tmp_path / 'plain'}", faults])
    folder = run(plain, LiveTable(num_rounds=2, quiet=True), make_transport)
    (ledger,) = (tmp_path / "flower").glob("*/ledger.jsonl")
    found, wanted = read_ledger(ledger), read_ledger(folder / "ledger.jsonl")
    assert [r for r in found if r["kind"] == "fault"] == [r for r in wanted if r["kind"] == "fault"]
    assert {r["kind"] for r in found} >= {"fault"}
    assert found[-1]["adapter_sha256"] == wanted[-1]["adapter_sha256"]


SLOW_TIER = (
    "{label: pi, peak_flops: 1.0e+9, memory_bytes: 1000000000, availability: 1.0, "
    "uplink_bytes_per_second: 1.0e+6, downlink_bytes_per_second: 1.0e+6}"
)


@pytest.mark.parametrize("devices", [False, True])
def test_an_asynchronous_run_goes_by_real_time_or_by_that_of_its_devices(
    experiment_file, tmp_path, monkeypatch, devices
):
    monkeypatch.setattr("fedmoe.runs.identity.code_digest", lambda *folders: "abc123")
    fast = SLOW_TIER.replace("1.0e+9", "9.0e+9")
    chosen = ["aggregation={name: fedbuff, buffer_size: 2}", "rescaling={name: none}"]
    chosen += [f"devices={{high: {fast}, low: {SLOW_TIER}}}"] if devices else []
    serve(FakeGrid({}, {}), experiment_file, tmp_path / "flower", shlex.join(chosen))
    (ledger,) = (tmp_path / "flower").glob("*/ledger.jsonl")
    found = read_ledger(ledger)
    if devices:
        plain = load_experiment(
            experiment_file, [*chosen, f"simulation.folder={tmp_path / 'plain'}"]
        )
        folder = run(plain, LiveTable(num_rounds=2, quiet=True), make_transport)
        wanted = read_ledger(folder / "ledger.jsonl")[-1]["adapter_sha256"]
    else:
        prepared = prepare(load_experiment(experiment_file, chosen), on_nodes=True)
        wanted = repeated(prepared, order_of(found)).adapter.digest()
    assert found[-1]["adapter_sha256"] == wanted
    assert all(("virtual_clock" in r) == devices for r in found if r["kind"] == "round")
