"""A strategy, a dataset and a metric of somebody's own on Flower's nodes, and what nodes refuse."""

import os
import sys
from dataclasses import replace

import pytest
from fake_grid import FakeGrid
from federation import Federation
from own_components import install, on_path, write_components, write_config
from sides import changed

from clients.about import about, allowed_modules, check_components
from clients.resident import resident
from fedmoe.config import load_experiment
from fedmoe.config.components import for_nodes, told_to_nodes
from fedmoe.errors import ConfigError, FedMoEError
from fedmoe.messages.records import Update
from fedmoe.report.ledger import read_ledger
from fedmoe.rounds import plan_round
from fedmoe.runs.local.in_process import InProcess
from fedmoe.runs.prepare import prepare
from fedmoe.runs.session import run
from server.settings import Settings
from server.transport import GridTransport


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with the modules, on the import path."""
    with on_path(write_components(tmp_path_factory.mktemp("nodes") / "own")) as folder:
        yield folder


@pytest.fixture(scope="module")
def foreign(own, tiny_folder):
    """A prepared run of the modules' components."""
    return prepare(load_experiment(write_config(own, tiny_folder)))


@pytest.fixture(scope="module")
def tasks(foreign):
    return plan_round(foreign.server.first_state(), foreign.server.members, 3, 0)


def over(grid, prepared, **settings):
    return GridTransport(grid, prepared.server, prepared.scorer, Settings(**settings), grid.clock)


@pytest.mark.usefixtures("quick_digest")
def test_a_node_that_allows_the_modules_gives_the_bits_of_this_process(foreign, tasks):
    grid = FakeGrid({"allow": "my_rules my_data"})
    answers = list(over(grid, foreign)(tasks))
    assert all(isinstance(answer, Update) for answer in answers), answers
    for ours, theirs in zip(InProcess(foreign.server, foreign.scorer)(tasks), answers, strict=True):
        assert ours.delta.digest() == theirs.delta.digest()


@pytest.mark.usefixtures("quick_digest")
@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "'my_data:Sums' is not allowed here.*'my_rules:Median' is not allowed here"),
        ({"allow": "my_data"}, "'my_rules:Median' is not allowed here.*add allow=\"my_rules\""),
        ({"allow": "my_rules, x"}, "node config: allow has 'my_rules,'; expected names of modules"),
    ],
)
def test_a_node_that_does_not_gets_no_task_and_says_why(foreign, tasks, config, said):
    grid = FakeGrid(config)
    with pytest.raises(FedMoEError, match=f"(?s)0 usable node.*node 100: .*{said}"):
        list(over(grid, foreign, node_seconds=1.0)(tasks))
    assert grid.clients_of(0) == [None]


@pytest.mark.usefixtures("quick_digest")
def test_a_node_without_the_package_or_with_another_version_is_refused(foreign, tasks, own):
    info = install(own, {"fedmoe.strategies": {"median": "my_rules:Median"}}, version="1.2")
    transport = over(FakeGrid({"allow": "my_data"}), foreign, node_seconds=1.0)
    try:
        for path in info.iterdir():
            path.unlink()
        info.rmdir()
        with pytest.raises(FedMoEError, match="is not allowed here"):
            list(transport(tasks))
        info = install(own, {"fedmoe.strategies": {"median": "my_rules:Median"}}, version="1.3")
        transport.nodes.refused.clear()
        with pytest.raises(
            FedMoEError, match=r"is to be of my-rules==1\.2, and here is my-rules==1\.3"
        ):
            list(transport(tasks))
    finally:
        for path in info.iterdir():
            path.unlink()
        info.rmdir()


def test_a_task_is_held_against_the_same_rules_as_the_handshake(own, foreign, tmp_path):
    mark = tmp_path / "imported"
    text = f"open({str(mark)!r}, 'w').close()\n" + (own / "my_rules.py").read_text()
    (own / "trap.py").write_text(text)
    experiment = for_nodes(foreign.setup.experiment).replace("my_rules:Median", "trap:Median")
    resident.cache_clear()
    for allow in ((), ("my_rules", "my_data")):
        with pytest.raises(ConfigError, match="'trap:Median' is not allowed here"):
            resident(experiment, "", allow)
    assert not mark.exists()
    assert "trap" not in sys.modules


def test_the_nodes_own_overrides_are_held_against_its_allowance(own, foreign):
    experiment = for_nodes(foreign.setup.experiment)
    resident.cache_clear()
    with pytest.raises(ConfigError, match=r"partition\.name: 'my_parts:Mine' is not allowed here"):
        resident(experiment, "partition=my_parts:Mine", ("my_rules", "my_data"))


def test_what_the_server_alone_needs_is_not_asked_of_a_node(foreign):
    assert "my_rules:length" not in for_nodes(foreign.setup.experiment)
    assert "length" not in told_to_nodes(foreign.setup.experiment)


def test_objects_of_the_server_alone_are_refused_before_anything_is_sent(foreign):
    class Local(type(foreign.setup.experiment.aggregation)):
        pass

    experiment = replace(foreign.setup.experiment, aggregation=Local())
    grid = FakeGrid({})
    with pytest.raises(ConfigError, match=r"aggregation: a file for other machines cannot hold"):
        over(grid, changed(foreign, experiment=experiment))
    assert not grid.sent


def test_a_node_checks_without_importing(own):
    assert allowed_modules({"allow": " my_rules  a.b "}) == ["my_rules", "a.b"]
    assert about({})
    check_components({"components": "[]"}, {})
    check_components({}, {})


@pytest.mark.slow
def test_own_components_on_two_supernodes(tmp_path, tiny_folder, monkeypatch, own):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "flower").mkdir()
    federation = Federation(tmp_path / "flower")
    path = [str(own), *filter(None, [os.environ.get("PYTHONPATH")])]
    federation.environment["PYTHONPATH"] = os.pathsep.join(path)
    config = write_config(own, tiny_folder)
    plain = run(load_experiment(config))
    try:
        federation.superlink()
        for number in range(2):
            federation.supernode("--node-config", f'name="node-{number}" allow="my_rules my_data"')
        records = federation.flwr_run(config=config, node_seconds=300, num_nodes=2)
    finally:
        federation.stop()
    assert records[0]["strategy"] == "my_rules:Median"
    scores = [r["score"] for r in records if r["kind"] == "evaluation"]
    assert min(scores) >= 0.5
    expected = read_ledger(plain / "ledger.jsonl")[-1]["adapter_sha256"]
    assert records[-1]["adapter_sha256"] == expected
