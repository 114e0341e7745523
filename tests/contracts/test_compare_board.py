"""The display of a comparison while it runs: one table, or a line a run."""

import io
from types import SimpleNamespace

from rich.console import Console

from fedmoe.comparison.board import Board, RunOnBoard
from fedmoe.comparison.plan import PlannedRun
from fedmoe.config import Experiment
from fedmoe.progress.table import LiveTable


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def runs():
    return [
        PlannedRun(case, variant, Experiment(rounds=4, seed=seed))
        for seed in (0, 1)
        for case in ("few", "many")
        for variant in ("base", "ours [red]")
    ]


def board(terminal, clock, quiet=True):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, height=30)
    return Board(runs(), quiet=quiet, console=console, clock=clock), out


def test_without_a_terminal_every_run_has_its_lines_and_the_time_left():
    clock = Clock()
    shown, out = board(terminal=False, clock=clock)
    planned = runs()
    with shown:
        shown.ended(planned[0], 1.25, 40.0, before=True)
        assert isinstance(shown.begins(planned[1]), LiveTable)
        clock.now += 20.0
        shown.ended(planned[1], 1.5, 20.0, before=False)
        shown.begins(planned[2])
    lines = out.getvalue().splitlines()
    assert lines[0] == "1 of 8: few, base, seed 0 had ended before, loss 1.250"
    # 40 s for a run of 4 rounds, and 7 to do, of which one begins now.
    assert lines[1] == "2 of 8: few, ours [red], seed 0, about 4 min 40 s left"
    assert lines[2] == "few, ours [red], seed 0 took 20.0 s, loss 1.500"
    assert lines[3].startswith("3 of 8: many, base, seed 0, about 3 min 00 s left")


def test_a_terminal_has_one_table_of_all():
    clock = Clock()
    shown, out = board(terminal=True, clock=clock, quiet=False)
    planned = runs()
    shown.ended(planned[0], 0.25, 40.0, before=False)
    shown.ended(planned[4], 0.35, 40.0, before=False)
    watcher = shown.begins(planned[1])
    assert isinstance(watcher, RunOnBoard)
    watcher.planned([])
    watcher.finished(SimpleNamespace(round=3))
    clock.now += 10.0
    shown.console.print(shown._render())
    text = out.getvalue()
    assert "2 of 8 runs" in text
    assert "round 3/4, 10.0 s" in text
    rows = {tuple(line.split()[:2]): line for line in text.splitlines() if "/2" in line}
    assert "2/2" in rows["few", "base"]
    assert "done" in rows["few", "base"]
    assert "0.300 ± 0.071" in rows["few", "base"]
    assert "running" in rows["few", "ours"]
    assert "[red]" in rows["few", "ours"]
    assert "waiting" in rows["many", "base"]


def test_a_run_that_ends_while_the_table_is_drawn_is_in_the_next_one():
    """rich draws on a thread of its own; here the clock, asked meanwhile, stands for the other."""
    run = runs()[0]

    class Busy(Clock):
        def __call__(self):
            if shown.progress.current is not None and shown.progress.phase == "training":
                shown.ended(run, 0.25, 40.0, before=False)
            return self.now

    shown, out = board(terminal=True, clock=Busy(), quiet=False)
    shown.begins(run).planned([])
    shown.console.print(shown._render())
    first = out.getvalue()
    assert "0 of 8 runs" in first
    assert "round 0/4" in first
    assert "running" in first
    assert "0.250" not in first
    shown.console.print(shown._render())
    later = out.getvalue().removeprefix(first)
    assert "1 of 8 runs" in later
    assert "running" not in later
    assert "0.250" in later


def test_many_variants_show_the_rows_around_the_one_that_runs():
    planned = [PlannedRun("", f"variant {i:02}", Experiment(rounds=1)) for i in range(50)]
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=16)
    shown = Board(planned, quiet=False, console=console, clock=Clock())
    shown.begins(planned[30])
    console.print(shown._render())
    text = console.file.getvalue()
    assert "variant 30" in text
    assert "variant 10" not in text
    assert text.count("variant") <= 12
