"""The display of a run whose clients are known by name, hold rows of their own, come and go."""

import io
import json
import warnings
from dataclasses import replace

import pytest
from rich.console import Console
from test_live import Clock, screen, tasks_of, update_for

from fedmoe.evaluation.evaluate import ClientScore, Evaluation
from fedmoe.messages.records import Failure
from fedmoe.messages.rows import RowCounts
from fedmoe.progress.table import LiveTable
from fedmoe.rounds import Member
from fedmoe.runs.news import News
from fedmoe.runs.roster import Attendance

with warnings.catch_warnings():
    # flwr 1.41 pins a typer that uses what click 8.4 calls deprecated, and warnings are errors.
    warnings.simplefilter("ignore", DeprecationWarning)
    from server.log import LogLines

NAMES = ["attic", "barn", "cellar", "the-" + "very-" * 10 + "long"]
MEMBERS = [Member(n, "tiny", 1, 1.0, name) for n, name in enumerate(NAMES)]
TASKS = [replace(task, name=NAMES[task.client]) for task in tasks_of(1)]
FULL, LOSSY = RowCounts.of(train=9, test=1), RowCounts.of(train=5, test=1, too_long=2)


def scores(split="test", values=(0.5, 0.25), tier="tiny"):
    clients = tuple(
        ClientScore(client=n, name=NAMES[n], examples=4, tokens=8, loss=1.0 + n, score=v)
        for n, v in enumerate(values)
    )
    return Evaluation(0, split, tier, 1, 1.5, 0.4, 8, 1.0, {}, clients=clients)


def tell(display):
    """What a run tells a display, once or more often."""
    three, there = tuple(MEMBERS[:3]), 3
    display.met(Attendance(1, there, joined=three))
    display.unscored(TASKS[2], Failure(1, 2, "cannot\n  be read"), "test")
    display.withheld(TASKS[3:], "test")
    for _ in range(2):
        display.accounted({0: ("attic", FULL), 1: ("barn", LOSSY)})
    display.evaluated([scores(), scores("server", ())])
    display.planned(TASKS)
    display.answered(TASKS[0], replace(update_for(TASKS[0]), rows=FULL))
    display.answered(TASKS[1], Failure(1, 1, "no memory"))
    display.answered(TASKS[2], replace(update_for(TASKS[2]), rows=LOSSY))
    display.met(Attendance(2, 3))
    display.withheld(TASKS[3:], "validation")
    display.met(Attendance(3, 2, absent=(MEMBERS[1],), joined=(), left=(MEMBERS[0],)))
    display.met(Attendance(4, 3, joined=(MEMBERS[3],)))


WARNED = "25% of the rows of client {} are not used: 8 read"
SAID = [
    "round 1: 3 clients are there",
    "round 0: client cellar gave no test scores: cannot be read",
    f"1 client(s) withhold their scores: {NAMES[3]}",
    "rows of 2 clients: 18 read: 14 to train on, 0 held out for validation, 2 for testing, 2 "
    "dropped (2 too long)",
    WARNED.format("barn"),
    "lowest client barn 25.0% loss 2.000",
    "client barn",
    WARNED.format("cellar"),
    "round 3: 2 clients are there; absent: barn; gone for good: attic",
    f"round 4: 3 clients are there; joined: {NAMES[3]}; back: barn",
]


def lines_of(**options):
    out = io.StringIO()
    tell(LiveTable(num_rounds=4, console=Console(file=out, width=100), clock=Clock(), **options))
    return out.getvalue().splitlines()


def test_a_pipe_gets_a_line_for_what_is_new_with_names():
    lines = lines_of()
    assert len(lines) == len(SAID) + 1  # the server's own rows have a line of their own
    assert "round 0/4: server tiny (k=1) 40.0% loss 1.500" in lines
    lines.remove("round 0/4: server tiny (k=1) 40.0% loss 1.500")
    for line, said in zip(lines, SAID, strict=True):
        assert said in line
    assert [line.startswith("warning: ") for line in lines] == [
        said.startswith(("25%", "round 0:")) for said in SAID
    ]


def test_quiet_leaves_what_is_lost():
    lines = lines_of(quiet=True)
    assert [line.startswith("warning: ") for line in lines] == [True, True, False, True]
    assert lines[2] == "round 1: client barn failed: no memory"


def test_the_servers_log_says_the_same(caplog):
    caplog.set_level("INFO", logger="flwr")
    tell(LogLines({}))
    for said in SAID:
        assert said in caplog.text
        assert caplog.text.count(WARNED.format("barn")) == 1
    warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warned) == 4


def test_json_has_names_and_accounts():
    events = [json.loads(line) for line in lines_of(json=True)]
    of = {event["kind"]: event for event in reversed(events)}
    assert [j["name"] for j in of["roster"]["joined"]] == NAMES[:3]
    assert (of["unscored"]["name"], of["client"]["name"]) == ("cellar", "attic")
    assert of["withheld"]["clients"] == [3]
    assert of["rows"]["rows"] == FULL.as_json()
    assert of["planned"]["names"] == NAMES
    assert of["evaluation"]["clients"][1]["name"] == "barn"


def test_the_table_shows_names_and_cuts_long_ones():
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    live = LiveTable(num_rounds=4, console=console, clock=Clock())
    live.planned(TASKS)
    live.evaluated([scores(), scores("server", ())])
    rows = [line.split() for line in screen(live).splitlines()]
    shown = [cells[0] for cells in rows if cells and cells[-1].isdigit()]
    assert shown[:3] == NAMES[:3]
    assert len(shown[3]) == 24
    assert (shown[3][:8], shown[3][-8:]) == (NAMES[3][:8], NAMES[3][-8:])
    tested = [cells for cells in rows if "1.500" in cells]
    assert [cells[1] for cells in tested] == ["test", "server"]
    assert tested[0][-2:] == ["barn", "25.0%"]


def test_where_nobody_scores_the_highest_loss_is_the_lowest():
    out = io.StringIO()
    live = LiveTable(num_rounds=4, console=Console(file=out, width=100), clock=Clock())
    live.evaluated([scores(values=(0.0, 0.0, 0.0))])
    assert "lowest client cellar 0.0% loss 3.000" in out.getvalue()
    live.evaluated([scores(values=(0.0,))])
    assert out.getvalue().count("lowest") == 1


@pytest.mark.parametrize("number", [3, 40])
def test_many_losses_are_counted(number):
    rows = {n: (f"c{n}", LOSSY) for n in range(number)}
    said = News().losses(rows)
    assert len(said) == min(number, 11)
    assert (said[-1] == "30 more clients have such warnings") == (number == 40)
