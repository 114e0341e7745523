"""Virtual time does not know where clients were simulated: the same bits over Flower's grid."""

from dataclasses import replace

from fake_grid import FakeGrid
from sides import changed

from fedmoe.devices import Device
from fedmoe.report.ledger import read_ledger
from fedmoe.rounds import run_rounds
from fedmoe.runs.local.in_process import InProcess
from fedmoe.runs.recorder import Recorder
from server.settings import Settings
from server.transport import GridTransport

KEYS = ("round", "client", "virtual_seconds", "virtual_clock")


def times_over(prepared, transport, folder):
    folder.mkdir()
    recorder = Recorder(folder, prepared.server)
    run_rounds(
        prepared.server.first_state(),
        prepared.server.members,
        prepared.setup.experiment.aggregation,
        transport,
        [recorder],
        num_rounds=2,
        clients_per_round=4,
        seed=prepared.setup.experiment.seed,
    )
    recorder.close()
    transport.close()
    lines = [x for x in read_ledger(folder / "ledger.jsonl") if x["kind"] in ("client", "round")]
    assert all(line["virtual_seconds"] > 0 for line in lines)
    return [[line.get(key) for key in KEYS] for line in lines]


def test_the_grid_and_the_plain_loop_take_the_same_virtual_time(prepared, tmp_path):
    device = Device(
        peak_flops=1e9,
        memory_bytes=10**9,
        downlink_bytes_per_second=1e6,
        uplink_bytes_per_second=1e5,
    )
    devices = {"high": device, "low": replace(device, uplink_bytes_per_second=1e4)}
    run = changed(prepared, experiment=replace(prepared.setup.experiment, devices=devices))
    here = times_over(run, InProcess(run.server, run.scorer), tmp_path / "here")
    grid = GridTransport(FakeGrid({}, {}), run.server, run.scorer, Settings(num_nodes=2))
    assert times_over(run, grid, tmp_path / "grid") == here
    assert len(here) == 2 * (4 + 1)
