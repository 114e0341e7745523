"""Names of nodes in a run config, and the config's settings."""

import tomllib
from dataclasses import asdict

import pytest
from test_handshake import MEMBERS, PROJECT

from fedmoe.errors import ConfigError
from server.settings import Settings, read_nodes, read_settings


def test_names_of_nodes_are_read_as_clients_and_tiers():
    found = read_nodes(" lab-3090 = 0, 3 ;pi=low;", MEMBERS)
    assert found == {"lab-3090": frozenset({0, 3}), "pi": frozenset({1, 2})}
    assert read_nodes("", MEMBERS) == {}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("lab", "'lab' is not an entry; expected for example `lab-3090=0,3; pi=low`"),
        ("lab=", "'lab=' is not an entry"),
        ("lab=0,,1", "is not an entry"),
        ("lab=4", r"lab: '4' is neither a client \(0..3\) nor a tier \(high, low\)"),
        ("lab=0;lab=1", "lab is there twice"),
        ("lab=mid; x", r"(?s)2 fault.*'mid' is neither a client.*'x' is not an entry"),
    ],
)
def test_faulty_names_of_nodes_are_refused(text, fault):
    with pytest.raises(ConfigError, match=fault):
        read_nodes(text, MEMBERS)


def test_all_faults_of_a_run_config_are_told_at_once():
    given = {"num_nodes": "2", "round_seconds": -1, "task_seconds": 5, "config": "x"}
    with pytest.raises(ConfigError) as caught:
        read_settings(given)
    assert [fault.path for fault in caught.value.faults] == ["num_nodes", "round_seconds"]
    assert read_settings({"task_seconds": 5}).task_seconds == 5


def test_the_apps_run_config_has_every_setting_at_its_default():
    text = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    given = tomllib.loads(text)["tool"]["flwr"]["app"]["config"]
    assert {name: given[name] for name in asdict(Settings())} == asdict(Settings())
    assert read_settings(given) == Settings()
