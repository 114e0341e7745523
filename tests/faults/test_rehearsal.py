"""`fedmoe deploy rehearse`: kills come at their moment, and the table says what came of them."""

import json
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
from simulations.rehearsal.kills import LADDER, Kill
from simulations.rehearsal.processes import ROLES, Deployment, Service
from simulations.rehearsal.rehearse import Table, _rows
from simulations.rehearsal.watching import Outcome, trace

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
    return {"kind": "end", "adapter_sha256": digest}


REFERENCE = {"adapter_sha256": "aa", "trace": trace(rounds(3.0, 2.0, 1.0))}


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
    rows = _rows([*rounds(3.0, 2.0, 1.0), end("aa")], outcomes, REFERENCE)
    assert [row["same"] for row in rows] == ["yes", "yes"]
    assert rows[0]["outcome"] == "went on by itself"


def test_the_kill_before_the_first_difference_is_to_blame():
    outcomes = [Outcome(Kill("SuperNode", "training", n), n, 5.0) for n in (1, 2, 3)]
    rows = _rows([*rounds(3.0, 9.0, 9.0), end("bb")], outcomes, REFERENCE)
    assert [row["same"] for row in rows] == ["yes", "no", "not known"]


def test_an_adapter_that_differs_after_equal_rounds_is_not_called_the_same():
    outcomes = [Outcome(Kill("SuperNode", "training", 1), 1, 5.0)]
    (row,) = _rows([*rounds(3.0, 2.0, 1.0), end("bb")], outcomes, REFERENCE)
    assert row["same"] == "not known"


def test_a_run_that_never_ended_is_never_called_the_same():
    outcomes = [Outcome(Kill("SuperLink", "training", 2), 2)]
    (row,) = _rows(rounds(3.0), outcomes, REFERENCE)
    assert row["outcome"].startswith("did not go on")
    assert row["same"] == "no"


def test_a_client_that_was_left_out_is_named():
    ledger = [*rounds(3.0), client(2, 0, None, "failed"), end("bb")]
    (row,) = _rows(ledger, [Outcome(Kill("client app", "training", 2), 2, 5.0)], REFERENCE)
    assert row["outcome"] == "went on by itself; client 0 left out of round 2: gone"
    assert row["same"] == "no"


def test_a_table_goes_on_where_it_stopped_unless_it_is_of_another_run(tmp_path):
    table = Table.of(tmp_path / "kills.json", "one")
    table.reference = {"seconds": 60.0, "adapter_sha256": "a" * 64, "trace": {}}
    kill = LADDER[0][0]
    table.rows[kill.key] = {
        "who": kill.who,
        "when": kill.when,
        "outcome": "went on by itself",
        "seconds": 7.4,
        "same": "yes",
    }
    table.write()
    assert Table.of(tmp_path / "kills.json", "one") == table
    text = (tmp_path / "kills.md").read_text()
    assert "| server app | before round 1 | went on by itself | 7 | yes |" in text
    with pytest.raises(FedMoEError, match="other code"):
        Table.of(tmp_path / "kills.json", "two")


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
def test_a_killed_server_app_costs_no_bit(tmp_path):
    superlink, *nodes = free_ports(4)
    clients = ("--clients", "a=high,b=low,c=lowest", "--config", CONFIG)
    options = (f"--server=127.0.0.1:{superlink}", f"--node-port={nodes[0]}")
    folder = tmp_path / "trial"
    assert main(["deploy", "init", str(folder), *options, *clients]) == 0
    assert rehearsal([str(folder), "--kills", "1"]) == 0
    table = json.loads((folder / "rehearsal/kills.json").read_text())
    assert [row["same"] for row in table["rows"].values()] == ["yes"]
