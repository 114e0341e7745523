"""Devices in YAML: inline or by the path of a file, resolved at load, refused in plain words."""

from pathlib import Path

import pytest

from fedmoe.config import Experiment, load_experiment
from fedmoe.config.load import json_schema, load, to_yaml
from fedmoe.devices import Device
from fedmoe.errors import ConfigError

ROOT = Path(__file__).parents[2]
PROFILES = sorted((ROOT / "configs/devices").glob("*.yaml"))
BOARD = """\
label: board
peak_flops: 1e9
memory_bytes: 1000
downlink_bytes_per_second: 10
uplink_bytes_per_second: 5
"""
FLEET = """\
budget: {tiers: {high: {top_k: 4}, low: {top_k: 1}}}
devices: {high: devices/board.yaml, low: devices/board.yaml}
"""


@pytest.fixture
def fleet(tmp_path):
    """A config and the folder of device files beside it."""
    (tmp_path / "devices").mkdir()
    (tmp_path / "devices/board.yaml").write_text(BOARD)
    path = tmp_path / "fleet.yaml"
    path.write_text(FLEET)
    return path


def faults(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_experiment(path, overrides)
    return [str(fault) for fault in caught.value.faults]


def test_a_path_starts_at_the_configs_folder_and_the_result_needs_no_file(fleet, tmp_path):
    experiment = load_experiment(fleet)
    board = experiment.devices["low"]
    assert (board.label, board.peak_flops, board.availability) == ("board", 1e9, 1.0)
    elsewhere = tmp_path / "elsewhere" / "config.yaml"
    elsewhere.parent.mkdir()
    elsewhere.write_text(to_yaml(experiment))
    assert load_experiment(elsewhere) == experiment


def test_a_path_in_an_override_starts_at_the_working_folder(fleet, tmp_path, monkeypatch):
    work = tmp_path / "work"
    work.mkdir()
    (work / "fast.yaml").write_text(BOARD.replace("1e9", "1e12"))
    monkeypatch.chdir(work)
    experiment = load_experiment(fleet, ["devices.low=fast.yaml"])
    assert [d.peak_flops for d in experiment.devices.values()] == [1e9, 1e12]


def test_an_override_reaches_into_a_device_of_a_file(fleet):
    experiment = load_experiment(fleet, ["devices.low.availability=0.5"])
    assert [d.availability for d in experiment.devices.values()] == [1.0, 0.5]
    assert experiment.availability("low") == 0.5


def test_an_override_may_replace_a_path_that_leads_nowhere(fleet):
    fleet.write_text(FLEET.replace("low: devices/board", "low: devices/gone"))
    board = fleet.parent / "devices/board.yaml"
    assert load_experiment(fleet, [f"devices.low={board}"]).devices["low"].label == "board"


def test_no_devices_and_full_availability_are_the_default(tmp_path):
    (tmp_path / "plain.yaml").write_text("rounds: 1\n")
    experiment = load_experiment(tmp_path / "plain.yaml")
    assert experiment.devices == {}
    assert experiment.availability("full") == 1.0


def test_a_missing_file_is_one_fault_with_the_likely_name(fleet):
    wrong = fleet.parent / "devices/bord.yaml"
    assert faults(fleet, f"devices.low={wrong}") == [
        f"devices.low: {wrong}: no such file; did you mean {fleet.parent / 'devices/board.yaml'}?"
    ]


def test_faults_of_a_device_file_are_told_at_its_tier(fleet):
    (fleet.parent / "devices/board.yaml").write_text(BOARD.replace("peak_flops", "peak_flop"))
    found = faults(fleet)
    assert "devices.low.peak_flop: unknown key; did you mean devices.low.peak_flops?" in found
    assert len(found) == 4  # the same file twice: an unknown key, and one that is missing
    (fleet.parent / "devices/board.yaml").write_text("label: [")
    assert all("board.yaml: line 1" in fault for fault in faults(fleet))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("devices.hihg=devices/board.yaml", "'hihg' is not one of 'high', 'low'; did you mean"),
        ("devices={high: devices/board.yaml}", "no device for 'low'; give every tier one"),
        ("devices.low.availability=0", "devices.low.availability: found 0, expected more than 0"),
        ("devices.low.availability=1.5", "devices.low.availability: found 1.5"),
        ("devices.low.peak_flops=0", "devices.low.peak_flops: found 0"),
        ("devices.low.utilisation=2", "devices.low.utilisation: found 2"),
        ("devices.low=3", "devices.low: found 3, expected a mapping"),
    ],
)
def test_a_fleet_that_cannot_be_is_refused(fleet, monkeypatch, override, expected):
    monkeypatch.chdir(fleet.parent)
    (fault,) = faults(fleet, override)
    assert expected in fault


def test_only_devices_may_stand_in_files_of_their_own(fleet):
    (fault,) = faults(fleet, f"training={fleet.parent / 'devices/board.yaml'}")
    assert fault.startswith("training: found '")


def test_editors_accept_a_path_or_a_mapping():
    devices = json_schema(Experiment)["properties"]["devices"]["additionalProperties"]
    assert {"$ref": "#/$defs/Device"} in devices["anyOf"]
    assert any(choice.get("type") == "string" for choice in devices["anyOf"])


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_every_profile_is_a_device_and_names_its_sources(path):
    device = load(Device, path)
    assert device.label
    # From two CPU cores to the largest GPU: a slip of 1,000 would be outside.
    assert 1e11 < device.peak_flops < 1e15
    assert 1e9 < device.memory_bytes < 2e11
    assert 1e5 < device.uplink_bytes_per_second <= device.downlink_bytes_per_second < 1e10
    text = " ".join(path.read_text().split())
    assert all(part in text for part in ("# Peak: ", "Memory: ", "# Link: assumed, "))
