"""The display of a run while it runs: on a terminal, in a pipe, as JSON and when quiet."""

import gc
import io
import json
import weakref
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from fedmoe.adapter import Adapter
from fedmoe.evaluation.evaluate import Evaluation
from fedmoe.messages.records import Failure, Task, Update
from fedmoe.progress.table import LiveTable, Progress
from fedmoe.progress.view import titled
from fedmoe.report.text_table import TextTable
from fedmoe.rounds import ServerState

NO_ADAPTER: Adapter = None  # type: ignore[assignment]  # the table never looks at it
TIERS = {"tiny": 1, "large": 8}


class Clock:
    """Time that passes only when told to."""

    now = 100.0

    def __call__(self):
        return self.now


def tasks_of(round_, num_clients=4):
    names = [*TIERS]
    return [
        Task(round_, c, names[c % 2], TIERS[names[c % 2]], torch.ones(2), NO_ADAPTER)
        for c in range(num_clients)
    ]


def update_for(task):
    return Update(
        task.round,
        task.client,
        task.tier,
        task.top_k,
        task.rescaler,
        NO_ADAPTER,
        torch.zeros(2, 4),
        examples=50,
        tokens=4000,
        steps=8,
        loss_before=2.5,
        loss_after=1.25,
        seconds=2.0,
        peak_bytes=1,
    )


def scores_at(round_, score=0.5):
    return [
        Evaluation(round_, "validation", tier, k, 1.5, score, score, 96, 1.0, {})
        for tier, k in TIERS.items()
    ]


def play(live, clock, num_rounds=2, num_clients=4):
    """Two rounds of ten seconds; client 1 fails in the first."""
    with live:
        live.evaluated(scores_at(0, 0.0))
        for number in range(1, num_rounds + 1):
            tasks = tasks_of(number, num_clients)
            live.planned(tasks)
            for task in tasks:
                fails = (number, task.client) == (1, 1)
                answer = Failure(1, 1, "no [bold] memory") if fails else update_for(task)
                live.answered(task, answer)
            clock.now += 10
            live.finished(ServerState(number, NO_ADAPTER, {}))
            live.evaluated(scores_at(number))


def shown(terminal=False, **options):
    clock, out = Clock(), io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, color_system=None)
    live = LiveTable(num_rounds=2, console=console, clock=clock, **options)
    play(live, clock)
    return out.getvalue()


def test_in_a_pipe_each_event_is_one_line_without_control_characters():
    lines = shown().splitlines()
    assert lines == [
        "round 0/2: validation tiny (k=1) 0.0% loss 1.500, large (k=8) 0.0% loss 1.500",
        "round 1: client 1 failed: no [bold] memory",
        "round 1/2: 3 of 4 clients, 12,000 tokens, local loss 2.500 -> 1.250, "
        "10.0 s elapsed, about 10.0 s left",
        "round 1/2: validation tiny (k=1) 50.0% loss 1.500, large (k=8) 50.0% loss 1.500",
        "round 2/2: 4 of 4 clients, 16,000 tokens, local loss 2.500 -> 1.250, 20.0 s elapsed",
        "round 2/2: validation tiny (k=1) 50.0% loss 1.500, large (k=8) 50.0% loss 1.500",
    ]


def test_quiet_shows_only_the_client_that_failed():
    assert shown(quiet=True) == "round 1: client 1 failed: no [bold] memory\n"
    assert shown(quiet=True, terminal=True) == "round 1: client 1 failed: no [bold] memory\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_json_is_one_object_per_event(terminal):
    events = [json.loads(line) for line in shown(json=True, terminal=terminal).splitlines()]
    kinds = [event["kind"] for event in events]
    one_round = ["planned", *["client"] * 4, "round", "evaluation", "evaluation"]
    assert kinds == ["evaluation", "evaluation", *one_round, *one_round]
    failed = [e for e in events if e.get("status") == "failed"]
    assert [(e["round"], e["client"], e["reason"]) for e in failed] == [(1, 1, "no [bold] memory")]
    assert events[3] | update_for(tasks_of(1)[0]).reported() == events[3]
    assert (events[3]["status"], "metrics" in events[3]) == ("ok", False)


def test_json_has_own_metrics():
    out = io.StringIO()
    live = LiveTable(num_rounds=1, json=True, console=Console(file=out, width=500))
    task = tasks_of(1)[0]
    live.answered(task, replace(update_for(task), metrics={"gradient_norm": 0.5}))
    assert json.loads(out.getvalue())["metrics"] == {"gradient_norm": 0.5}


def test_json_has_null_for_a_loss_that_is_not_finite():
    out = io.StringIO()
    live = LiveTable(num_rounds=1, json=True, console=Console(file=out))
    live.evaluated([Evaluation(1, "test", "tiny", 1, float("nan"), 0.0, 0.0, 1, 1.0, {})])
    assert json.loads(out.getvalue())["loss"] is None


def screen(live):
    """The table as it stands, without the drawing of a terminal around it."""
    with live.console.capture() as capture:
        live.console.print(live._render())
    return capture.get()


def on_a_terminal(num_clients, height=40, workers=1):
    console = Console(
        file=io.StringIO(), force_terminal=True, width=100, height=height, color_system=None
    )
    live = LiveTable(num_rounds=3, workers=workers, console=console, clock=Clock())
    live.planned(tasks_of(1, num_clients))
    return live


def test_the_table_shows_each_clients_state_and_measurements():
    live = on_a_terminal(5, workers=2)
    tasks = tasks_of(1, 5)
    live.answered(tasks[0], update_for(tasks[0]))
    live.answered(tasks[1], Failure(1, 1, "no [bold] memory, " * 20))
    live.evaluated(scores_at(0, 0.25))
    rows = {cells[0]: cells for line in screen(live).splitlines() if (cells := line.split())}
    assert rows["0"][1:] == ["tiny", "done", "1", "2.500", "1.250", "2,000", "2.0", "s"]
    assert rows["1"][1:] == ["large", "failed", "8"]
    assert [rows[c][2] for c in "234"] == ["training", "training", "waiting"]
    assert rows["tiny"][1:] == ["validation", "1", "0", "25.0%", "1.500"]


def test_what_happens_while_the_table_is_drawn_is_in_the_next_one():
    """rich draws on a thread of its own; here the clock, asked meanwhile, stands for the other."""
    live, tasks = on_a_terminal(3), tasks_of(1, 3)

    class Busy(Clock):
        def __call__(self):
            if not live.progress.answers:
                live.evaluated(scores_at(0))
                for task in tasks:
                    live.answered(task, update_for(task))
            return self.now

    live._now(clock=Busy())
    for states, tables in ((["training", "waiting", "waiting"], 1), (["done"] * 3, 2)):
        lines = [line.split() for line in screen(live).splitlines()]
        assert [cells[2] for cells in lines if cells and cells[0] in "012"] == states
        assert sum("tier" in cells for cells in lines) == tables


def test_of_many_clients_the_latest_are_shown_with_a_count():
    live = on_a_terminal(200)
    for task in tasks_of(1, 200)[:120]:
        live.answered(task, update_for(task))
    text = screen(live)
    rows = [line.split() for line in text.splitlines()]
    assert [int(row[0]) for row in rows if "tiny" in row or "large" in row] == [*range(102, 122)]
    assert "120 of 200 clients answered, 0 failed" in text


def test_the_table_fits_a_low_terminal():
    live = on_a_terminal(200, height=24)
    live.evaluated(scores_at(0))
    assert len(screen(live).splitlines()) <= 24


def test_the_terminal_is_left_with_the_last_state():
    text = shown(terminal=True)
    assert "round 2/2  finished" in text
    assert text.endswith("\x1b[?25h")  # the cursor is back


def test_an_error_is_not_called_finished():
    live = on_a_terminal(4)
    with pytest.raises(RuntimeError), live:
        raise RuntimeError
    assert "interrupted" in live.console.file.getvalue()
    assert "finished" not in live.console.file.getvalue()


def test_the_time_left_follows_the_pace_of_this_process():
    clock = Clock()
    progress = Progress(num_rounds=10, workers=1, clock=clock, phase="training", started=100.0)
    progress = replace(progress, tasks=tasks_of(6))  # resumed after round 5
    assert progress.seconds_left is None
    clock.now += 10
    answers = {t.client: update_for(t).reported() for t in progress.tasks}
    progress = replace(progress, answers={client: answers[client] for client in (0, 1)})
    assert progress.seconds_left == pytest.approx(90)  # half a round took 10; 4.5 are left
    progress = replace(progress, phase="evaluating", finished=1, answers=answers)
    clock.now += 10
    assert progress.seconds_left == pytest.approx(80)  # one round took 20; 4 are left


@pytest.mark.parametrize("terminal", [False, True])
def test_no_update_is_kept_when_it_has_been_shown(terminal):
    """A round of many clients must not hold all their updates at once."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    live = LiveTable(num_rounds=1, console=console)
    task = tasks_of(1)[0]
    live.planned([task])
    update = update_for(task)
    seen = weakref.ref(update)
    live.answered(task, update)
    del update
    gc.collect()
    assert seen() is None
    assert task.client in live.progress.answers


@pytest.mark.parametrize("width", [40, 60, 80, 1000])
def test_no_cell_of_a_table_is_cut(width):
    """Columns without room follow below, beside the first one again."""
    names = ["client", "loss before training", "loss after", "tokens/s", "time in all"]
    rows = [[f"client-{i}", "12.500", "0.123", "1,234,567", "59 min 59 s"] for i in range(3)]
    table = TextTable("Clients", names, rows)
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None)
    for part in titled(table, width):
        console.print(part)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    for cell in ("client-2", *rows[0][1:]):
        assert sum(cell in line for line in lines) >= (1 if cell == "client-2" else 3), cell
    assert "…" not in out.getvalue()
    for word in " ".join(names).split():
        assert word in out.getvalue()


def test_the_live_table_of_a_narrow_terminal_has_its_last_column():
    live = on_a_terminal(3)
    live.console.width = 60
    for task in tasks_of(1, 3):
        live.answered(task, update_for(task))
    lines = screen(live).splitlines()
    assert max(map(len, lines)) <= 60
    assert sum(line.rstrip().endswith("2.0 s") for line in lines) == 3


def test_what_happens_before_the_first_round_is_said():
    """A base model takes minutes to be tested: an empty screen would look like a hang."""
    live = on_a_terminal(0)
    out = io.StringIO()
    piped = LiveTable(num_rounds=2, console=Console(file=out, width=100))
    for display in (piped, live):
        display.begun("loading the model and the data")
    with live:
        live.begun("testing the base model", 0, 4)
        live.progress.clock.now += 12
        live.begun("testing the base model", 3, 4)
        assert "round 0/3  testing the base model, 3 of 4 tiers  12.0 s" in screen(live)
    piped.begun("testing the base model", 0, 4)
    piped.begun("testing the base model", 1, 4)
    said = ["loading the model and the data", "testing the base model, 4 tiers"]
    assert out.getvalue().splitlines() == said


def test_when_all_have_answered_their_updates_are_combined():
    live = on_a_terminal(2)
    first, second = tasks_of(1, 2)
    live.answered(first, update_for(first))
    assert "round 1/3  training" in screen(live)
    live.progress.clock.now += 10
    live.answered(second, update_for(second))
    assert "round 1/3  combining  10.0 s elapsed, about 20.0 s left" in screen(live)


def test_a_run_that_continues_still_shows_its_scores():
    live = on_a_terminal(2)
    lines = [{"kind": "evaluation", **e.as_json()} for e in (*scores_at(0), *scores_at(1, 0.25))]
    live.resumed(1, [{"kind": "run"}, *lines])
    rows = [line.split() for line in screen(live).splitlines()]
    assert ["tiny", "validation", "1", "1", "25.0%", "1.500"] in rows
