"""Time in a report: virtual, which a run without devices has none of, and that of phases."""

import time
from types import SimpleNamespace

import pytest
from report_folder import DEVICES, TIERS, ledger_lines, make_run, plots_of

from fedmoe.devices.clock import client_time
from fedmoe.report import Ledger, write_report
from fedmoe.report.facts import facts
from fedmoe.report.plots_costs import PARTS, mean_parts, virtual_time
from fedmoe.report.plots_scores import score_over_time, score_per_round
from fedmoe.report.run import read_run
from fedmoe.report.run_tables import phases as table_of_phases
from fedmoe.runs.session import Keeper, Phases

KEYS = ("virtual_seconds", "virtual_clock", "virtual_bytes_up", "probe_flops")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return read_run(make_run(tmp_path_factory.mktemp("runs") / "timed", num_rounds=3))


def test_a_tiers_parts_are_the_means_of_its_client_rounds(run):
    tier = next(tier for tier in run.tiers if tier.name == "small")
    lines = [c for c in run.clients if c["tier"] == "small" and c["status"] == "ok"]
    parts = mean_parts(run, tier)
    times = [client_time(DEVICES["small"], line) for line in lines]
    assert parts["compute"] == pytest.approx(sum(t.compute for t in times) / len(times))
    assert parts["latency"] == pytest.approx(0.1)
    # Whatever it does, a client is in the round until the round ends: 8 s in these.
    assert sum(parts.values()) == pytest.approx(8.0)


def test_the_bars_are_stacked_to_the_rounds_end(run):
    axes = virtual_time(run).axes[0]
    rights = {round(bar.get_y(), 1): bar.get_x() + bar.get_width() for bar in axes.patches}
    assert len(axes.patches) == len(PARTS) * len(TIERS)
    assert [*rights.values()] == pytest.approx([8.0] * len(TIERS))


def test_scores_stand_at_the_end_of_their_round(run):
    over, per = (draw(run).axes[0].lines for draw in (score_over_time, score_per_round))
    assert [*per[0].get_xdata()] == [0, 1, 2, 3]
    assert [*over[0].get_xdata()] == [0.0, 8.0, 16.0, 24.0]
    assert [*over[0].get_ydata()] == [*per[0].get_ydata()]


def test_long_runs_are_shown_in_minutes(tmp_path):
    run = read_run(make_run(tmp_path / "long", num_rounds=60, num_clients=4))
    axes = score_over_time(run).axes[0]
    assert axes.get_xlabel() == "virtual minutes"
    assert axes.lines[0].get_xdata()[-1] == pytest.approx(8.0)


def test_a_run_without_devices_has_no_virtual_time(tmp_path):
    folder = make_run(tmp_path / "plain", num_rounds=2)
    records = ledger_lines(folder)
    (folder / "ledger.jsonl").unlink()
    with Ledger(folder / "ledger.jsonl") as ledger:
        for record in records:
            for tier in record.get("tiers", {}).values():
                del tier["device"]
            ledger.append({key: value for key, value in record.items() if key not in KEYS})
    write_report(folder)
    drawn = plots_of(folder)
    assert not {"score-over-time", "virtual-time"} & drawn
    assert "score-per-round" in drawn
    assert "irtual" not in (folder / "report.html").read_text()


def test_the_page_says_how_long_it_took(run, tmp_path):
    folder = make_run(tmp_path / "timed", num_rounds=3)
    write_report(folder)
    assert "- Virtual time: 24.0 s" in (folder / "summary.md").read_text()


def test_phases_hold_the_time_before_an_interruption_too():
    """Else training would have another share in one table than in the other."""
    phases = Phases()
    phases.seconds.update(load=3.0, evaluation=1.0)
    about = {"seconds": 50.0, "phases": {"load": 2.0, "evaluation": 8.0, "training": 40.0}}
    found = SimpleNamespace(checkpoint=SimpleNamespace(about=about))
    keeper = Keeper(found, None, None, time.monotonic() - 20.0, phases)
    spent = keeper.spent()
    assert (spent["load"], spent["evaluation"]) == (5.0, 9.0)
    assert spent["training"] == pytest.approx(56.0, abs=0.5)
    assert sum(spent.values()) == pytest.approx(keeper.seconds(), abs=0.1)


def test_an_interruption_is_named_and_older_ledgers_leave_no_other_time(tmp_path):
    folder = make_run(tmp_path / "resumed", num_rounds=2)
    records = ledger_lines(folder)
    (folder / "ledger.jsonl").unlink()
    with Ledger(folder / "ledger.jsonl") as ledger:
        for record in records[:-1]:
            ledger.append(record)
        ledger.append({"kind": "resumed", "round": 1})
        ledger.append(records[-1] | {"seconds": 300.0})
    found = read_run(folder)
    assert dict(facts(found))["Interrupted"] == "once, and resumed"
    assert [row[0] for row in table_of_phases(found).rows][-2] == "before it was interrupted"
