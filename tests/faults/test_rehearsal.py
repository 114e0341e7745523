"""`simulations.rehearsal`: kills come at their moment, and the table says what came of them."""

import os
import signal
import time
from pathlib import Path
from typing import Any, cast

import pytest
from ports import free_ports

from fedmoe.cli.main import main
from fedmoe.errors import FedMoEError
from simulations.rehearsal.__main__ import main as rehearsal
from simulations.rehearsal.deployment import Deployment
from simulations.rehearsal.kills import LADDER, Kill
from simulations.rehearsal.processes import ROLES, Service
from simulations.rehearsal.table import Outcome, page, rows_of

CONFIG = str(Path(__file__).parents[2] / "configs/deploy/rehearsal.yaml")
RUN = {"kind": "run", "num_rounds": 3}


class Nobody:
    """A deployment in which no process runs."""

    server = Service(Path("none"), Path("/nowhere"))
    clients = dict.fromkeys("abc", server)


def client(number, who, loss, status="ok"):
    return {
        "kind": "client",
        "round": number,
        "client": who,
        "status": status,
        "loss_before": loss,
        "loss_after": loss,
        "tokens": 5,
        "reason": "gone",
    }


def rounds(*losses):
    """A ledger with rounds of one client."""
    ledger = [RUN]
    for number, loss in enumerate(losses, start=1):
        ledger += [client(number, 0, loss), {"kind": "round", "round": number}]
    return ledger


def end(digest):
    return {"kind": "end", "adapter_sha256": digest, "seconds": 60.0}


REFERENCE = [*rounds(3.0, 2.0, 1.0), end("aa")]


def same(rows):
    """The last column."""
    return [row.split(" | ")[-1].removesuffix(" |\n") for row in rows]


def test_every_kind_of_process_is_killed_at_many_moments():
    kills = [kill for kills in LADDER for kill in kills]
    assert len(kills) == len({kill.key for kill in kills}) >= 20
    for who in ROLES:
        assert len({kill.when for kill in kills if kill.who == who}) >= 3, who


@pytest.mark.parametrize(
    ("kill", "length"),
    [
        (Kill("SuperLink", "begin"), 1),
        (Kill("server app", "first answer", 2), 4),
        (Kill("server app", "all answers", 2), 5),
        (Kill("SuperLink", "end"), 7),
    ],
)
def test_a_kill_is_due_from_its_moment_on(kill, length):
    ledger = rounds(3.0, 2.0, 1.0)
    due = [kill.due(ledger[:n], 3, Nobody()) for n in range(len(ledger) + 1)]
    assert due == [n >= length for n in range(len(ledger) + 1)]


def test_an_upload_is_hit_while_its_node_is_at_it(tmp_path):
    class Sending(Nobody):
        clients = {"a": Service(Path("none"), tmp_path)}  # noqa: RUF012

    kill, log, sending = Kill("SuperNode", "upload", 2), tmp_path / "log", cast(Any, Sending())
    words = [
        "Sending: query message",
        "Sent successfully",
        "Sending: train message",
        "Sent successfully",
    ]
    ledger, due = rounds(3.0), [kill.due(rounds(3.0), 3, sending)]
    for n in range(len(words)):
        log.write_text("\n".join(["x" * 5000, *words[: n + 1]]))
        due.append(kill.due(ledger, 3, sending))
    assert due == [False, False, False, True, False]
    log.write_text("Sending: train message")
    assert not kill.due(rounds(3.0, 2.0), 3, sending)


@pytest.mark.parametrize("phase", ["training", "upload", "first answer"])
def test_a_moment_that_has_passed_is_not_waited_for(phase):
    ledger = rounds(3.0, 2.0)
    assert [Kill("worker", phase, n).missed(ledger) for n in (1, 2, 3)] == [True, True, False]
    assert not any(Kill("worker", "end").missed(ledger[:n]) for n in range(6))


def test_where_the_adapter_is_the_same_every_kill_was_harmless():
    outcomes = [Outcome(Kill("SuperLink", "training", n), n, 5.0) for n in (1, 2)]
    rows = rows_of(REFERENCE, outcomes, REFERENCE)
    assert same(rows) == ["yes", "yes"]
    assert "| resumed by itself | 5 |" in rows[0]


@pytest.mark.parametrize("digest", ["aa", "bb"])
def test_one_other_loss_is_another_result_for_all_kills_of_the_run(digest):
    outcomes = [Outcome(Kill("SuperNode", "training", n), n, 5.0) for n in (1, 2, 3)]
    rows = rows_of([*rounds(3.0, 9.0, 1.0), end(digest)], outcomes, REFERENCE)
    assert same(rows) == ["no", "no", "no"]


def test_an_adapter_that_differs_after_equal_rounds_is_not_called_the_same():
    outcomes = [Outcome(Kill("SuperNode", "training", 1), 1, 5.0)]
    assert same(rows_of([*rounds(3.0, 2.0, 1.0), end("bb")], outcomes, REFERENCE)) == ["no"]


def test_a_run_that_never_ended_is_never_called_the_same():
    outcomes = [Outcome(Kill("SuperLink", "training", 2), 2)]
    for ledger in (rounds(3.0), rounds(3.0, 2.0, 1.0), []):
        rows = rows_of(ledger, outcomes, REFERENCE)
        assert "| did not resume |" in rows[0]
        assert same(rows) == ["no"]


def test_a_client_that_was_left_out_is_named():
    ledger = [*rounds(3.0), client(2, 0, None, "failed"), end("bb")]
    rows = rows_of(ledger, [Outcome(Kill("client app", "training", 2), 2, 5.0)], REFERENCE)
    assert "| resumed by itself; client 0 left out of round 2: gone |" in rows[0]
    assert same(rows) == ["no"]


def test_a_process_that_could_not_be_killed_has_no_result():
    outcome = Outcome(Kill("worker", "training", 2), 2, skipped="not killed")
    assert same(rows_of(REFERENCE, [outcome], REFERENCE)) == [""]


def test_the_page_says_who_was_killed_and_what_the_undisturbed_run_was():
    outcomes = [Outcome(Kill("server app", "begin"), 1, 7.4, submissions=2)]
    text = page(rows_of(REFERENCE, outcomes, REFERENCE), REFERENCE)
    assert "killed server app, with SIGKILL" in text
    assert "60 s and ended with adapter `aa`" in text
    row = "| server app | before round 1 | resumed after the same command, 2 times | 7 | yes |"
    assert text.endswith(row + "\n")


@pytest.fixture
def service(tmp_path):
    """A service whose script starts a child, as Flower's commands do."""
    script = tmp_path / "superlink.sh"
    script.write_text('#!/bin/sh\nexport FLWR_HOME="$FEDMOE_STATE/flwr"\nsleep 300 &\nwait\n')
    script.chmod(0o755)
    service = Service(script, tmp_path / "state")
    yield service
    service.stop()


def wait_until(true):
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_killed_service_is_started_again_without_what_was_left_of_it(service):
    service.start()
    wait_until(lambda: any("sleep" in name(pid) for pid in service.pids()))
    before = service.pids()
    assert not service.died
    os.kill(service.process.pid, signal.SIGKILL)
    wait_until(lambda: service.died)
    service.restart()
    assert not service.died
    wait_until(lambda: any("sleep" in name(pid) for pid in service.pids()))
    assert not set(before) & set(service.pids())
    service.stop()
    assert service.pids() == []


def name(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_a_folder_for_several_machines_is_refused(tmp_path, capsys):
    clients = ("--clients", "a=lowest,b=low,c=high", "--config", CONFIG)
    assert main(["deploy", "init", str(tmp_path / "f"), "--server", "h", *clients]) == 0
    assert rehearsal([str(tmp_path / "f")]) == 2
    assert "for several machines" in capsys.readouterr().err
    assert rehearsal([str(tmp_path)]) == 2
    with pytest.raises(FedMoEError, match="no folder of `fedmoe deploy init`"):
        Deployment(tmp_path, tmp_path / "state")


@pytest.mark.slow
def test_a_killed_server_app_changes_no_bit(tmp_path):
    superlink, *nodes = free_ports(4)
    clients = ("--clients", "a=high,b=low,c=lowest", "--config", CONFIG)
    options = (f"--server=127.0.0.1:{superlink}", f"--node-port={nodes[0]}")
    folder = tmp_path / "trial"
    assert main(["deploy", "init", str(folder), *options, *clients]) == 0
    assert rehearsal([str(folder), "--kills", "1"]) == 0
    (row,) = (folder / "rehearsal/kills.md").read_text().splitlines()[-1:]
    assert row.startswith("| server app | before round 1 | resumed after the same command")
    assert row.endswith("| yes |")
