"""The state of a run that is finished, at work, dead, damaged, or on virtual devices."""

import json
import math
import os

import numpy as np
import pytest
from report_folder import make_run
from rich.console import Console
from watched import answered, end, ended_round, failed, header, scored, whole_round, write

from fedmoe.cli.main import main
from fedmoe.errors import FedMoEError
from fedmoe.report.run import read_run
from fedmoe.watch.estimates import seconds_left
from fedmoe.watch.folder import WatchedFolder
from fedmoe.watch.read_state import participants
from fedmoe.watch.state import RunState, Unreadable
from fedmoe.watch.status import follow, show
from fedmoe.watch.tables import runs, scores


def now_of(folder, now=1000.0):
    return WatchedFolder(folder, lambda: now).read_run()


def test_a_finished_run_says_what_it_reached_and_asks_for_nothing(tmp_path):
    lines = [header(2), *scored(0, "test", 0.0), *whole_round(1), *whole_round(2)]
    now = now_of(write(tmp_path, *lines, *scored(2, "test", 0.7), end(), age=5000))
    assert (now.phase, now.num_finished, now.round, now.seconds_left) == ("finished", 2, 2, None)
    assert now.status_line == "finished after 1 min 39 s"
    assert now.advice is None
    columns = scores(now).columns
    assert len({*columns}) == len(columns)
    assert columns[2:5] == ["base", "validation", "test"]
    assert [(c.client, c.state) for c in now.clients] == [(c, "ok") for c in range(4)]
    low, high = now.tiers
    assert (low.name, low.answers, low.bytes_up, low.tokens) == ("low", 4, 360, 200)
    assert [(s.split, s.round, s.score) for s in high.scores] == [
        ("test", 0, 0.1),
        ("validation", 1, 0.6),
        ("validation", 2, 0.6),
        ("test", 2, pytest.approx(0.8)),
    ]


def test_clients_are_ok_failed_with_a_reason_or_not_heard_yet(tmp_path):
    lines = [header(), *whole_round(1), answered(2, 0), failed(2, 1, "no memory")]
    now = now_of(write(tmp_path, *lines, age=3))
    assert (now.phase, now.round, now.activity) == ("running", 2, "training in round 2")
    assert [(c.client, c.tier, c.top_k, c.state, c.reason) for c in now.clients] == [
        (0, "low", 1, "ok", None),
        (1, "high", 4, "failed", "no memory"),
        (2, "high", 4, "awaited", None),
        (3, "low", 1, "awaited", None),
    ]


def test_a_last_line_that_is_half_written_is_not_there_yet(tmp_path):
    whole = [header(), *whole_round(1)]
    torn = json.dumps(answered(2, 0))[:-9]
    assert now_of(write(tmp_path / "a", *whole, torn=torn)).clients[0].state == "awaited"
    assert now_of(write(tmp_path / "b", *whole, answered(2, 0))).clients[0].state == "ok"


def test_failures_are_grouped_by_reason_whatever_their_numbers(tmp_path):
    lines = [
        header(),
        failed(1, 0, "delta has a value of 1e9; expected at most 1e4"),
        failed(1, 1, "timeout"),
        answered(1, 2),
        answered(1, 3),
        ended_round(1),
        failed(2, 3, "delta has a value of -7.5; expected at most 1e4"),
    ]
    found = now_of(write(tmp_path, *lines)).quarantine
    assert [(q.count, q.clients, q.last_round) for q in found] == [(2, (0, 3), 2), (1, (1,), 1)]
    assert found[0].reason == lines[-1]["reason"]


def test_failures_of_one_code_are_told_apart_by_their_words(tmp_path):
    lines = [
        failed(1, 0, "update for client 7", code="task"),
        failed(1, 1, "update for client 8", code="task"),
        failed(1, 2, "update for round 8", code="task"),
        failed(1, 3, "old"),
    ]
    found = now_of(write(tmp_path, header(), *lines)).quarantine
    assert [(q.code, q.count) for q in found] == [("task", 2), ("", 1), ("task", 1)]


def test_a_run_that_was_taken_up_again_goes_on(tmp_path):
    lines = [header(2), *whole_round(1), {"kind": "resumed", "round": 2}, answered(2, 0)]
    now = now_of(write(tmp_path, *lines, age=5))
    assert (now.phase, now.round, [c.state for c in now.clients][:2]) == (
        "running",
        2,
        ["ok", "awaited"],
    )


def test_a_run_without_news_is_silent_only_after_its_patience_and_says_how_to_go_on(tmp_path):
    lines = [header(), *whole_round(1), answered(2, 0)]
    assert now_of(write(tmp_path, *lines, age=119)).phase == "running"
    now = now_of(write(tmp_path, *lines, age=121))
    assert (now.phase, now.seconds_left) == ("silent", None)
    assert "Round 1 is the last one finished" in str(now.advice)
    assert "--resume auto" in str(now.advice)
    # A client that took a minute makes four minutes of silence ordinary.
    slow = [header(), *whole_round(1), answered(2, 0, seconds=60.0)]
    assert now_of(write(tmp_path, *slow, age=239)).phase == "running"
    # Nobody knows how long the base model takes.
    assert now_of(write(tmp_path, header(), age=800)).activity == "scoring the base model"
    assert now_of(write(tmp_path, header(), age=800)).phase == "running"


def test_the_time_left_is_that_of_the_rounds_and_scores_to_come(tmp_path):
    """By hand: rounds of 10 s, 2 s to score each, 2 s for the test scores at the end."""
    start = [header(4), *scored(0, "test", 0.0)]

    def left(*lines, heard=0, quiet=0.0):
        return seconds_left(read_run(write(tmp_path, *start, *lines)), heard, 4, quiet)

    assert left(answered(1, 0), heard=1) is None
    assert left(*whole_round(1)) == 3 * 12 + 2
    assert left(*whole_round(1), answered(2, 0), heard=1) == 3 * 12 - 2.5 + 2
    assert left(*whole_round(1), quiet=5.0) == 3 * 12 - 5 + 2
    assert left(*whole_round(1), quiet=500.0) == 3 * 12 - 12 + 2, "at most one round's"
    unscored = [answered(2, 0), ended_round(2)]
    assert left(*whole_round(1), *unscored) == 2 * 12 + 2 + 2, "round 2 is yet to be scored"
    shared = [ended_round(1, workers=2), *scored(1, "validation")]
    assert left(*shared) == 3 * 11 + 1, "two workers share the tiers"


def test_what_a_run_does_between_rounds_is_said(tmp_path):
    base = [header(2), *scored(0, "test", 0.0)]
    assert now_of(write(tmp_path, *base)).activity == "training in round 1"
    scoring = now_of(write(tmp_path, *base, answered(1, 0), ended_round(1)))
    assert scoring.activity == "scoring after round 1"
    (tmp_path / "config.yaml").write_text("evaluation: {every: 0}\n")
    unscored = now_of(write(tmp_path, *base, answered(1, 0), ended_round(1)))
    assert unscored.activity == "training in round 2"
    last = now_of(write(tmp_path, *base, *whole_round(1), *whole_round(2)))
    assert (last.activity, last.round, last.phase) == ("scoring for the last time", 2, "running")


def test_devices_show_their_labels_and_the_virtual_clock(tmp_path):
    now = now_of(make_run(tmp_path, finished=5), now=0.0)
    assert now.virtual_clock == 40.0
    assert [t.device for t in now.tiers] == ["board 1", "board 2", "board 4", "board 8"]
    assert [t.name for t in now.tiers] == ["tiny", "small", "medium", "large"]
    assert now_of(make_run(tmp_path / "whole")).clients[0].virtual_seconds
    assert now.experts
    assert (len(now.experts.load), now.experts.num_experts) == (4, 64)


def test_experts_are_counted_as_a_comparison_counts_them(tmp_path):
    folder = write(tmp_path, header(), *whole_round(1))
    counts = np.full((4, 2, 8), 10)
    counts[:, 0, 3], counts[:, 0, 4], counts[:, 1] = 0, 50, 0
    np.savez(folder / "activations.npz", by_round=counts[:1], by_client=counts)
    experts = now_of(folder).experts
    assert (experts.num_experts, experts.starved, experts.captured) == (16, 1, 1)
    assert experts.load[0][4] == pytest.approx(50 / 110 * 8, abs=1e-3)
    assert experts.load[1] == (None,) * 8, "a layer without tokens has no load"


def test_an_asynchronous_run_names_only_those_it_has_heard(tmp_path):
    for size, unnamed in ((4, 3), (2, 1)):
        lines = [header(updates_per_step=size), answered(1, 0), ended_round(1)]
        lines += [answered(2, 2, staleness=1)]
        now = now_of(write(tmp_path, *lines))
        assert [(c.client, c.state, c.staleness) for c in now.clients] == [(2, "ok", 1)]
        assert now.unnamed == unnamed


def test_those_awaited_are_those_that_the_round_loop_samples(tmp_path):
    """The clients are those in the ledger of `fedmoe run configs/quickstart.yaml`."""
    tiers = header()["tiers"]
    tiers["high"]["clients"], tiers["low"]["clients"] = [5, 1, 2], [0, 3, 4, 6, 7]
    run = read_run(write(tmp_path, header(10, num_clients=8, tiers=tiers), *scored(0, "test")))
    assert [participants(run, number) for number in (1, 2, 3)] == [
        [1, 2, 4, 7],
        [2, 3, 5, 7],
        [0, 1, 4, 6],
    ]


def test_some_clients_of_a_sampled_round_are_awaited_by_name(tmp_path):
    folder = write(tmp_path, header(per_round=2), *scored(0, "test", 0.0))
    drawn = participants(read_run(folder), 1)
    assert len(drawn) == 2
    now = now_of(folder)
    assert ([c.client for c in now.clients], now.unnamed) == (drawn, 0)


def test_a_diverged_loss_is_shown_as_nothing_and_not_as_a_fault(tmp_path):
    lines = [header(2), *whole_round(1)]
    lines[1] = answered(1, 0, loss_after=None)
    lines += scored(1, "test", 0.1, loss=None)
    place = WatchedFolder(write(tmp_path, *lines))
    console = Console(record=True, width=120, quiet=True)
    show(place, console)
    assert math.isfinite(place.read_run().quiet_seconds)


def test_one_damaged_ledger_does_not_hide_the_others(tmp_path):
    write(tmp_path / "good", header(), *whole_round(1))
    write(tmp_path / "empty")
    write(tmp_path / "odd", {"kind": "run"})
    write(tmp_path / "case/torn", header(), torn="{\n")
    runs = {run.run: run for run in WatchedFolder(tmp_path).read().runs}
    assert [*runs] == ["case/torn", "empty", "good", "odd"]
    assert isinstance(runs["good"], RunState)
    faults = {name: run.error for name, run in runs.items() if isinstance(run, Unreadable)}
    assert "line 2 is damaged" in faults["case/torn"]
    assert "only just beginning" in faults["empty"]
    assert "not those of a run" in faults["odd"]


def test_a_comparison_says_how_many_runs_it_still_plans(tmp_path):
    write(tmp_path / "0-a-seed0", header(1), *whole_round(1), end())
    (tmp_path / "comparison.json").write_text('{"num_planned": 3}')
    place = WatchedFolder(tmp_path).read()
    assert (place.num_finished, place.num_known) == (1, 3)
    assert place.status_line == "1 of 3 runs finished"
    assert place.rounds == (1, 3), "runs to come are as long as the others"
    write(tmp_path / "search/0-a-0", header(1), *whole_round(1), end())
    searched = WatchedFolder(tmp_path).read()
    assert (searched.num_finished, searched.num_known) == (2, 4), "a search is planned besides"


@pytest.mark.parametrize("command", ["status", "watch"])
def test_a_folder_without_a_run_is_an_error_one_can_fix(tmp_path, capsys, command):
    (tmp_path / "notes.txt").write_text("x")
    for path, words in (
        (tmp_path, "holds no ledger.jsonl"),
        (tmp_path / "gone", "does not exist"),
        (tmp_path / "notes.txt", "a file"),
    ):
        assert main([command, str(path)]) == 2
        assert words in capsys.readouterr().err


def test_status_prints_a_table_or_json_with_every_tier(tmp_path, capsys):
    once = (header(), *whole_round(1), failed(2, 1, "no [bold] memory"))
    folder = write(tmp_path / "run", *once)
    assert main(["status", str(folder)]) == 0
    text = capsys.readouterr().out
    for words in ("low", "high", "60.0%", "no [bold] memory", "not heard yet"):
        assert words in text
    assert main(["status", str(folder), "--json"]) == 0
    state = json.loads(capsys.readouterr().out)
    assert (state["kind"], state["round"]) == ("run", 2)
    assert main(["status", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["run"] == "run"
    lines = [line | {"score": None, "metric": "loss"} if "score" in line else line for line in once]
    assert main(["status", str(write(tmp_path / "loss", *lines))]) == 0
    assert "Loss per token" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("terminal", [True, False])
def test_following_shows_each_change_and_ends_with_the_run(tmp_path, terminal):
    steps = [[header(2), *whole_round(1)], [*whole_round(2)], [*scored(2, "test"), end()]]
    lines, slept = steps.pop(0), []
    folder = write(tmp_path, *lines, age=9)

    def sleep(seconds):
        slept.append(seconds)
        lines.extend(steps.pop(0) if len(slept) != 2 else [])  # the second time nothing happens
        write(folder, *lines, age=9 - len(slept) if len(slept) != 2 else 8)

    console = Console(force_terminal=terminal, width=100, record=True, quiet=False, file=None)
    with console.capture() as shown:
        follow(WatchedFolder(folder, lambda: 1000.0), console, sleep=sleep)
    assert slept == [2.0] * 3
    if not terminal:
        rounds = [line.split(",")[0] for line in shown.get().splitlines()]
        assert rounds == [f"{folder.name}: round {n}/2" for n in (1, 2, 2)]


def test_following_tells_lines_of_one_tick_of_the_files_clock_and_the_end(tmp_path):
    lines = [header(2), *whole_round(1)]
    folder, more = write(tmp_path / "run", *lines), [whole_round(2), [end()], []]

    def sleep(_):
        lines.extend(more.pop(0))
        write(folder, *lines)

    console = Console(width=100)
    with console.capture() as shown:
        follow(WatchedFolder(folder, lambda: 1000.0), console, json=True, sleep=sleep)
    told = [json.loads(line) for line in shown.get().splitlines()]
    assert len({run["last_line"] for run in told}) == 1
    assert [(run["num_finished"], run["phase"]) for run in told] == [
        (1, "running"),
        (2, "running"),
        (2, "finished"),
    ]


def test_metrics_that_cannot_be_written_say_where(tmp_path):
    folder = write(tmp_path / "run", header(), *whole_round(1))
    with pytest.raises(FedMoEError, match=r"folder must exist.*\.prom"):
        show(WatchedFolder(folder), Console(quiet=True), prometheus=tmp_path / "no/such.prom")


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.yaml", b"a: [1"), ("activations.npz", b""), ("manifest.json", b"{")],
)
def test_a_damaged_file_beside_a_ledger_does_not_hide_the_other_runs(tmp_path, name, content):
    write(tmp_path / "sound", header(), *whole_round(1))
    write(tmp_path / "hurt", header(), *whole_round(1))
    (tmp_path / "hurt" / name).write_bytes(content)
    found = {run.run: run for run in WatchedFolder(tmp_path).read().runs}
    assert isinstance(found["hurt"], Unreadable)
    assert isinstance(found["sound"], RunState)


def test_an_address_that_is_none_is_refused_and_a_name_that_is_no_text_is_shown(tmp_path):
    from fedmoe.watch.server import Pages

    write(tmp_path / os.fsdecode(b"run-\xff"), header(), *whole_round(1))
    pages = Pages(WatchedFolder(tmp_path))
    assert pages.answer("//[")[0] == 400
    for target in ("/", "/metrics", "/state.json"):
        status, _, text = pages.answer(target)
        assert status == 200
        assert "run-" in text.encode().decode()


def test_runs_of_other_tiers_share_no_columns_but_their_means(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, header(1), *whole_round(1), *scored(1, "test", 0.7), end())
    table = runs(WatchedFolder(tmp_path).read())
    assert table.columns == ["run", "state", "rounds", "low", "high", "mean of tiers", "loss"]
    ledger = tmp_path / "b" / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace('"low"', '"tiny"'))
    mixed = runs(WatchedFolder(tmp_path).read())
    assert mixed.columns == ["run", "state", "rounds", "mean of tiers", "loss"]
    assert [row[-2:] for row in mixed.rows] == [row[-2:] for row in table.rows]
