"""Clients with rows of their own: the same bits in one process and on nodes, and nobody's loss."""

import json
from dataclasses import replace

import pytest
from fake_grid import FakeGrid
from flwr.app import MessageType
from owners import EXPERIMENT, OWNERS, digest, kinds, nodes_of, on_nodes

from fedmoe.config import load_experiment
from fedmoe.errors import FedMoEError
from fedmoe.messages.rows import RowCounts
from fedmoe.report.run import read_run
from fedmoe.runs.display import Display
from fedmoe.runs.session import run
from server.stream import GridStream

pytestmark = pytest.mark.usefixtures("quick_digest")


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


def test_three_nodes_give_the_bits_of_the_folder(experiment, plain, owners, tmp_path):
    configs = nodes_of(owners, ["den", "attic"], ["barn"], ["foyer", "cellar"])
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


class Cut(Display):
    """Ends the run at an answer to a round's tasks, as a power cut would."""

    def __init__(self, round):
        self.round = round

    def answered(self, task, answer):
        if task.round == self.round:
            raise KeyboardInterrupt


def scheduled(experiment, folder, **rules):
    """The experiment with clients that come and go, in a folder of its own."""
    return replace(
        experiment,
        rounds=5,
        clients_per_round=None,
        membership=replace(experiment.membership, **({"least": 1} | rules)),
        simulation=replace(experiment.simulation, folder=str(folder)),
    )


def test_comings_and_goings_change_nobody_else(experiment, tmp_path):
    rules = {"joins": {"den": 3}, "leaves": {"attic": 2}, "most_absent": 1}
    folder = run(scheduled(experiment, tmp_path, **rules))
    lines = kinds(folder, "client")
    per_round = {r: [c["name"] for c in lines if c["round"] == r] for r in range(1, 6)}
    assert per_round[1] == ["attic", "barn", "cellar", "foyer"]
    assert per_round[2] == ["barn", "cellar", "foyer"]
    assert per_round[3] == ["barn", "cellar", "foyer", "den"]
    numbers = {c["name"]: c["client"] for c in lines}
    assert numbers == {"attic": 0, "barn": 1, "cellar": 2, "foyer": 3, "den": 4}
    roster = {r["round"]: r for r in kinds(folder, "roster")}
    assert roster[2]["absent"] == [0]
    assert roster[3]["left"] == [0]
    assert [j["name"] for j in roster[3]["joined"]] == ["den"]
    # The others do in round 1 what they do where nobody leaves: the same rows, tier and batches.
    usual = kinds(run(scheduled(experiment, tmp_path / "usual", joins={"den": 3})), "client")
    measured = {"seconds": 0, "peak_bytes": 0}
    first = [{**c, **measured} for c in usual if c["round"] == 1]
    assert first == [{**c, **measured} for c in lines if c["round"] == 1]


RULES = {"joins": {"den": 3}, "leaves": {"attic": 2}}


@pytest.fixture(scope="module")
def whole(experiment, tmp_path_factory):
    """The folder of a run by these rules that nothing cut short."""
    return run(scheduled(experiment, tmp_path_factory.mktemp("whole"), **RULES))


@pytest.mark.parametrize("cut", [1, 4])
def test_a_run_that_is_cut_short_replays_who_was_there(experiment, whole, tmp_path, cut):
    broken = scheduled(experiment, tmp_path, **RULES)
    with pytest.raises(KeyboardInterrupt):
        run(broken, Cut(cut))
    again = run(broken, resume="auto")
    assert digest(again) == digest(whole)
    mine, theirs = kinds(again, "roster"), kinds(whole, "roster")
    assert {r["round"]: r for r in mine} == {r["round"]: r for r in theirs}


def test_who_was_there_is_replayed_on_nodes_even_if_a_node_is_late(experiment, owners, tmp_path):
    configs = nodes_of(owners, ["den", "attic"], ["barn"], ["foyer", "cellar"])
    seldom = replace(experiment.evaluation, every=0)
    e = replace(scheduled(experiment, tmp_path / "x"), rounds=2, evaluation=seldom)
    whole, _ = on_nodes(e, tmp_path / "whole", *configs)
    with pytest.raises(KeyboardInterrupt):
        on_nodes(e, tmp_path / "broken", *configs, display=Cut(2))
    late = FakeGrid(*configs[:2])
    late.clock.at(3.0, lambda: late.configs.update({102: configs[2]}))
    again, _ = on_nodes(e, tmp_path / "broken", *configs[:2], resume="auto", made=late)
    assert digest(again) == digest(whole)
    assert {r["round"]: r for r in kinds(again, "roster")}[2]["absent"] == []


def test_an_owner_leaves_with_its_node_and_another_joins(experiment, owners, tmp_path):
    configs = nodes_of(owners, ["den", "attic"], ["barn"], ["foyer", "cellar"])
    grid = FakeGrid(*configs[:2])

    class Changes(Display):
        def finished(self, state):
            if state.round == 1:
                del grid.configs[101]
            if state.round == 2:
                grid.configs[102] = configs[2]

    e = replace(scheduled(experiment, tmp_path), rounds=3)
    folder, _ = on_nodes(e, tmp_path, *configs[:1], made=grid, display=Changes())
    lines = kinds(folder, "client")
    names = [sorted(c["name"] for c in lines if c["round"] == r) for r in (1, 2, 3)]
    assert names == [
        ["attic", "barn", "den"],
        ["attic", "den"],
        ["attic", "cellar", "den", "foyer"],
    ]
    assert all(c["status"] == "ok" for c in lines)


def test_too_few_owners_end_the_run_with_their_names(experiment, owners, tmp_path):
    with pytest.raises(FedMoEError, match=r"round 1: 2 client\(s\) are there.*attic, den"):
        on_nodes(experiment, tmp_path, *nodes_of(owners, ["den", "attic"]))


def test_what_an_owner_withholds_never_leaves_its_node(experiment, owners, tmp_path):
    configs = nodes_of(owners, ["den", "attic"], ["barn"], ["foyer", "cellar"])
    configs[0]["report"] = "labels,name"
    configs[2] |= {"report": "score", "state": str(tmp_path / "state")}
    folder, grid = on_nodes(replace(experiment, rounds=1), tmp_path, *configs)
    said = json.dumps([{**m.content["config"]} for m in grid.sent], default=str)
    ledger = (folder / "ledger.jsonl").read_text()
    assert "foyer" not in said + ledger
    assert "withheld-" in ledger
    last = [e for e in kinds(folder, "evaluation") if e["split"] == "validation"]
    scored = {c["name"] for e in last for c in e["clients"]}
    assert "barn" in scored
    assert len(scored) == 3
    assert not {"den", "attic"} & scored
    assert sum(e["withheld"] for e in last) == 2
    run = read_run(folder)
    assert {run.name_of(c) for c in run.withheld} == {"den", "attic"}
    assert (folder / "summary.md").read_text().count("| withheld | withheld |") == 2
    for e in last:
        assert sum(c["examples"] for c in e["clients"]) == e["examples"]


def test_a_node_with_other_rows_of_a_client_is_refused(experiment, owners, tmp_path, caplog):
    other = tmp_path / "den.jsonl"
    other.write_text('{"prompt": "a", "response": "b"}\n')
    configs = nodes_of(owners, ["den", "attic"], ["barn", "foyer", "cellar"])
    configs.append({"name": "impostor", "data": f"den={other}"})
    grid = FakeGrid(*configs)
    folder, _ = on_nodes(replace(experiment, rounds=1), tmp_path, *configs[:2], made=grid)
    assert "has rows of client 'den' that differ from those on" in caplog.text
    assert kinds(folder, "end")


def test_a_node_that_names_no_rows_gets_no_tasks(experiment, owners, tmp_path):
    with pytest.raises(FedMoEError, match="this node names no rows: set `data` in its node config"):
        on_nodes(experiment, tmp_path, {"name": "bare"})


def test_a_strategy_with_personal_parts_runs_on_nodes(experiment, owners, tmp_path):
    e = replace(experiment, aggregation={"name": "fedsa_lora"}, rounds=2)
    configs = nodes_of(owners, ["den", "attic"], ["barn"], ["foyer", "cellar"])
    for config in configs:
        config["state"] = str(tmp_path / config["name"])
    here = run(replace(e, simulation=replace(e.simulation, folder=str(tmp_path / "here"))))
    there, _ = on_nodes(e, tmp_path / "there", *configs)
    assert digest(there) == digest(here)
    mine, theirs = kinds(there, "evaluation"), kinds(here, "evaluation")
    assert [m["clients"] for m in mine] == [t["clients"] for t in theirs]


def test_as_they_come_a_slow_owner_holds_up_nobody_not_even_the_scores(
    experiment, owners, tmp_path
):
    parts = ["attic"], ["barn"], ["cellar"], ["den"], ["foyer"]
    slow_node = 100

    def seconds(request):
        if request.metadata.message_type == MessageType.QUERY:
            return 0.0
        return 60.0 if request.metadata.dst_node_id == slow_node else 2.0

    grid = FakeGrid(*nodes_of(owners, *parts), seconds=seconds)
    e = replace(
        scheduled(experiment, tmp_path),
        clients_per_round=5,
        aggregation={"name": "fedbuff", "buffer_size": 2},
    )
    folder, _ = on_nodes(e, tmp_path, *grid.configs.values(), made=grid, transport=GridStream)
    lines = kinds(folder, "client")
    assert len([c for c in lines if c["status"] == "ok"]) == 10
    assert "attic" not in {c["name"] for c in lines if c["round"] < 5}
    # The base is scored by all; later the one at work is asked for nothing.
    first = [r for r in kinds(folder, "evaluation") if r["round"] == 0]
    assert {c["name"] for r in first for c in r["clients"]} == {*OWNERS}
    unscored = kinds(folder, "unscored")
    assert {r["code"] for r in unscored} == {"busy"}
    assert "attic" not in {
        c["name"]
        for r in kinds(folder, "evaluation")
        if r["split"] == "validation"
        for c in r["clients"]
    }


def test_the_servers_own_rows_choose_the_best_adapter(experiment, owners, tmp_path):
    own = tmp_path / "own.jsonl"
    own.write_text('{"prompt": "barn asks 1", "response": "barn says 1"}\n')
    e = replace(
        scheduled(experiment, tmp_path),
        rounds=2,
        data=replace(experiment.data, server_test=str(own)),
        evaluation=replace(experiment.evaluation, best="server", every_tier=True),
    )
    folder = run(e)
    lines = kinds(folder, "evaluation")
    server = [r for r in lines if r["split"] == "server"]
    assert {(r["round"], r["tier"]) for r in server} == {
        (r, t) for r in (0, 1, 2) for t in ("high", "low")
    }
    assert all(r["examples"] == 1 for r in server)
    # At every tier's k all owners score.
    for r in lines:
        if r["split"] == "test":
            assert {c["name"] for c in r["clients"]} == {*OWNERS}
    assert (folder / "adapter-best.safetensors").exists()


def test_a_resumed_run_lists_the_rows_of_clients_that_answered_before(
    experiment, tmp_path, monkeypatch
):
    monkeypatch.setattr("fedmoe.runs.identity.code_digest", lambda *folders: "abc123")
    simulation = replace(experiment.simulation, folder=str(tmp_path))
    few = replace(experiment.evaluation, every=0, clients=1)
    one = replace(experiment, clients_per_round=2, evaluation=few, simulation=simulation)
    with pytest.raises(KeyboardInterrupt):
        run(one, Cut(3))
    folder = run(one, resume="auto")
    said = [line["client"] for line in kinds(folder, "rows")]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [c["client"] for c in manifest["clients"]] == sorted({*said})
    assert len(said) == len({*said})
    later = {line["client"] for line in kinds(folder, "client") if line["round"] == 3}
    assert {*said} > later
