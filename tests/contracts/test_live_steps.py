"""What a run shows while it waits: tiers before the model is there, and every client's steps."""

import io
import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console
from test_live import Clock, on_a_terminal, screen, tasks_of, update_for

from fedmoe.budget import Levels, Tier
from fedmoe.config.schema import Experiment
from fedmoe.data.partition import Dirichlet
from fedmoe.progress.expected import expected_tiers
from fedmoe.progress.table import LiveTable
from fedmoe.training.steps import LoggedSteps, Steps

TIERS = {"high": Tier(top_k=4, clients=(0,)), "low": Tier(top_k=1, clients=(1, 2))}


def test_a_row_has_its_clients_steps_and_the_headline_the_time_that_they_leave():
    live = on_a_terminal(4, workers=2)
    steps = Steps(4)
    live.follow(steps)
    live.planned(tasks_of(1, 4))
    assert "left" not in screen(live)
    live.progress.clock.now += 10
    steps(0, 12, 24)
    rows = {cells[0]: cells for line in screen(live).splitlines() if (cells := line.split())}
    assert rows["0"][2:5] == ["12", "of", "24"]
    assert (rows["1"][2], rows["2"][2]) == ("training", "waiting")
    # Half of one of four clients took 10 s; 3 rounds of 4 clients take 240.
    assert live.progress.seconds_left == pytest.approx(230)
    live.answered(tasks_of(1)[0], update_for(tasks_of(1)[0]))
    assert live.progress.seconds_left == pytest.approx(110)
    live.planned(tasks_of(2, 4))
    assert steps.of(0) == (0, 0)


def test_in_a_pipe_a_line_comes_only_when_nothing_was_said_for_half_a_minute():
    clock, out = Clock(), io.StringIO()
    live = LiveTable(num_rounds=2, console=Console(file=out, width=200), clock=clock)
    steps = Steps(2)
    live.follow(steps)
    live.planned(tasks_of(1, 2))
    for second in range(1, 101):
        clock.now += 1
        steps(1, second, 200)
        live._beat()
    assert out.getvalue().splitlines() == [
        f"round 1/2: 0 of 2 clients, client 1 at step {step} of 200, about {left} left"
        for step, left in ((30, "12 min 50 s"), (60, "12 min 20 s"), (90, "11 min 50 s"))
    ]


def test_a_worker_tells_its_parent_of_steps():
    steps = Steps(3)
    if (pid := os.fork()) == 0:
        steps(2, 5, 9)
        steps(99, 1, 1)  # a client that came later
        os._exit(0)
    os.waitpid(pid, 0)
    assert [steps.of(client) for client in (1, 2, 99)] == [(0, 0), (5, 9), (0, 0)]


def test_a_node_logs_its_steps_now_and_then(caplog):
    clock = Clock()
    told = LoggedSteps(clock)
    with caplog.at_level(logging.INFO):
        for step in range(1, 31):
            clock.now += 1
            told(7, step, 30)
    assert caplog.messages == [
        "client 7: step 11 of 30, about 19 s left",
        "client 7: step 21 of 30, about 9 s left",
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_the_tiers_are_shown_while_the_model_loads_and_gone_when_it_cannot(terminal):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=80, height=20, color_system=None)
    live = LiveTable(num_rounds=3, console=console, clock=Clock())
    e = Experiment(budget=Levels(tiers=TIERS), partition=Dirichlet(num_clients=3))
    shown = []

    def load():
        shown.extend(line.split() for line in screen(live).splitlines())
        raise KeyError

    with pytest.raises(KeyError), live.loading(e):
        load()
    if terminal:
        assert ["high", "4", "1"] in shown
        assert ["low", "1", "2"] in shown
        assert out.getvalue().rstrip().endswith("\x1b[2K")  # erased, and no word of an end
        assert "interrupted" not in out.getvalue()
        live.planned(tasks_of(1, 2))
        assert "high" not in screen(live)
    else:
        assert out.getvalue() == "loading the model and the data\n"


def test_tiers_that_are_not_known_yet_are_not_shown():
    e = SimpleNamespace(budget=SimpleNamespace(), data=None)
    assert expected_tiers(e) is None
    full = expected_tiers(Experiment(partition=Dirichlet(num_clients=2)))
    assert full.rows == [["full", "all", "2"]]


def test_a_config_is_read_without_the_libraries_that_load_models_and_data():
    """They take most of the seconds before the first table."""
    code = """
import sys
from fedmoe import federation
from fedmoe.config import load_experiment
from fedmoe.progress import table
load_experiment("quickstart")
print(sorted({"transformers", "peft", "datasets", "pandas", "scipy", "flwr"} & {*sys.modules}))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
