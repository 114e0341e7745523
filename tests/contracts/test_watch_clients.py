"""Status, live page and metrics of a run whose clients are known by name, come and go."""

import io

import pytest
from owned import NAMES, begun, own_scores, roster, trained
from rich.console import Console
from watched import ended_round, write

from fedmoe.report.run import read_run
from fedmoe.rounds import Member, ServerState, plan_round
from fedmoe.watch.folder import WatchedFolder
from fedmoe.watch.prometheus import render_metrics
from fedmoe.watch.read_state import participants
from fedmoe.watch.status import show

FIRST = own_scores(0, "test", {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4})
FAILED = {"status": "failed", "reason": "no rows", "code": "failed"}


def folder_of(tmp_path, *lines):
    return WatchedFolder(write(tmp_path, *lines), lambda: 1000.0)


def test_before_anybody_has_come_there_is_nothing_to_show(tmp_path):
    now = folder_of(tmp_path, begun()[0]).read_run()
    assert now.clients == ()
    assert [tier.num_clients for tier in now.tiers] == [0, 0]


def test_clients_have_their_names_everywhere(tmp_path):
    lines = [*begun(), *FIRST, trained(1, 0), {**trained(1, 2), **FAILED}]
    folder = folder_of(tmp_path, *lines)
    now, out = folder.read_run(), io.StringIO()
    states = ["ok", "awaited", "failed", "awaited"]
    assert [(c.name, c.state) for c in now.clients] == [*zip(NAMES, states, strict=True)]
    assert [(g.clients, g.names) for g in now.quarantine] == [((2,), (NAMES[2],))]
    show(folder, Console(file=out, width=200))
    for name in NAMES:
        assert name in out.getvalue()
    metrics = render_metrics([now])
    assert 'fedmoe_clients_awaited{run="' in metrics
    assert 'tier="high"' in metrics


@pytest.mark.parametrize("per_round", [0, 2])
def test_those_who_are_away_are_not_awaited(tmp_path, per_round):
    head, first = begun()
    lines = [head | {"clients_per_round": per_round}, first, *FIRST, ended_round(1)]
    lines.append(roster(2, left=[1]))
    lines += [ended_round(2), roster(3, absent=[0])]
    run = read_run(write(tmp_path, *lines))
    assert run.away[3] == {0, 1}
    # What the round loop plans: everybody has a draw, and only those there are drawn from.
    members = [Member(c, "low", 1, float(c not in (0, 1))) for c in range(4)]
    state = ServerState(2, None, {"low": None})
    planned = [task.client for task in plan_round(state, members, per_round or 4, 0)]
    assert participants(run, 3) == planned
    assert {*planned} <= {2, 3}


def test_who_is_back_is_awaited_again(tmp_path):
    lines = [*begun(), roster(2, left=[3]), roster(3, joined=[3])]
    run = read_run(write(tmp_path, *lines))
    assert [*map(len, run.away.values())] == [0, 1, 0]
    assert participants(run, 3) == [0, 1, 2, 3]
    assert [tier.clients for tier in run.tiers] == [(0, 3), (1, 2)]
    assert run.header["num_clients"] == 4
