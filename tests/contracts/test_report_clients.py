"""The report of a run whose clients score on their own rows, or withhold their scores."""

import numpy as np
import pytest
from owned import NAMES, TIER, begun, own_scores, roster, rows, trained, withheld
from watched import end, ended_round, write

from fedmoe.comparison.fairness import fairness
from fedmoe.comparison.result import MEAN, as_scored, read_result
from fedmoe.errors import FedMoEError
from fedmoe.report import write_report
from fedmoe.report.clients import client_scores, spread_facts
from fedmoe.report.facts import facts, headline
from fedmoe.report.plots_clients import client_scores as plot
from fedmoe.report.plots_scores import client_losses
from fedmoe.report.run import read_run

BEFORE = {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4}
AFTER = {0: 0.5, 1: 0.4, 2: 0.8, 3: 0.7}


def folder_of(tmp_path, *more, before=BEFORE, after=AFTER):
    lines = [*begun(1), *own_scores(0, "test", before), *(trained(1, c) for c in range(4))]
    lines += [ended_round(1), *own_scores(1, "test", after), *more, end()]
    return write(tmp_path / "run", *lines)


def test_the_lowest_client_comes_first_under_its_name(tmp_path):
    run = read_run(folder_of(tmp_path))
    table = client_scores(run)
    assert [row[0] for row in table.rows] == [NAMES[c] for c in (1, 0, 3, 2)]
    assert dict(spread_facts(run))["Worst client"] == "barn, 40.0%"


def test_withheld_is_a_word_and_not_zero(tmp_path):
    some = {c: AFTER[c] for c in (0, 1)}
    run = read_run(folder_of(tmp_path, withheld(1, "test", 2, 3), before=some, after=some))
    table = client_scores(run)
    assert [row[0] for row in table.rows] == ["barn", "attic", *NAMES[2:]]
    assert [row[3:5] for row in table.rows[2:]] == [["withheld", "withheld"]] * 2
    assert "0.0%" not in [cell for row in table.rows for cell in row]
    assert dict(facts(run))["Clients that withhold their scores"] == "2"
    assert dict(spread_facts(run))["Worst client"].startswith("barn")


def test_where_all_withhold_the_report_says_so(tmp_path):
    lines = [*begun(1), withheld(0, "test", *range(4)), trained(1, 0), ended_round(1)]
    folder = write(tmp_path / "run", *lines, withheld(1, "test", *range(4)), end())
    run = read_run(folder)
    assert headline(run) == "All 4 clients that were asked withhold their scores."
    assert plot(run) is None
    write_report(folder)
    assert (folder / "summary.md").read_text().count("withheld") == 8
    with pytest.raises(FedMoEError, match="no client reports its test scores"):
        read_result("a", 0, folder)


def test_a_tier_without_scores_does_not_hide_the_others(tmp_path):
    high = {1: 0.25, 2: 0.25}
    folder = folder_of(tmp_path, withheld(1, "test", 0, 3), before=high, after={1: 0.5, 2: 0.5})
    said = "Test score rose from 25.0% without an adapter to 50.0% after round 1; 95% interval"
    assert headline(read_run(folder)).startswith(said)
    assert read_result("a", 0, folder).scores == {"high": 0.5, MEAN: 0.5}


def test_rows_are_accounted_for(tmp_path):
    more = [rows(0), rows(1, train=5), rows(2, train=4, test=1, too_long=3)]
    folder = folder_of(tmp_path, *more)
    write_report(folder)
    page = (folder / "report.html").read_text()
    assert "Rows of clients" in page
    assert "too long" in page
    assert "repeated" not in page[page.index("Rows of clients") :][:900]
    assert dict(facts(read_run(folder)))["Clients without test rows"] == "1"


@pytest.mark.parametrize("values", [dict.fromkeys(range(4), 0.0), {c: 0.002 * c for c in range(4)}])
def test_the_plot_has_room_beside_long_names(tmp_path, values):
    figure = plot(read_run(folder_of(tmp_path, before=values, after=values)))
    figure.canvas.draw()
    (axes,) = figure.axes
    assert axes.get_position().width > 0.5
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert all(len(label) < 40 for label in labels)
    assert any(label.startswith("attic") for label in labels)
    shown = [label.get_text() for label in axes.get_xticklabels()]
    assert len({*shown}) == len(shown)
    assert ("loss" in axes.get_xlabel()) == (not any(values.values()))


def test_the_other_plots_have_room_too(tmp_path):
    run = read_run(folder_of(tmp_path))
    figure = client_losses(run)
    figure.canvas.draw()
    assert figure.axes[0].get_position().width > 0.5


def test_a_client_that_never_trained_is_no_fault(tmp_path, drawn):
    """It came after the activations were written."""
    folder = folder_of(tmp_path)
    counts = np.ones((2, 2, 4), dtype=np.int64)
    np.savez_compressed(folder / "activations.npz", by_round=counts[:1], by_client=counts)
    assert len(read_run(folder).by_client) == len(NAMES)
    write_report(folder)
    assert (folder / "plots/client-expert-load.svg").exists()


def test_where_all_score_at_every_tier_a_client_counts_once(tmp_path):
    low, high = (
        own_scores(1, "test", AFTER, dict.fromkeys(range(4), tier)) for tier in ("low", "high")
    )
    folder = write(tmp_path / "run", *begun(1), trained(1, 0), ended_round(1), *low, *high)
    shown = client_scores(read_run(folder)).rows
    assert [row[:2] for row in shown] == [[NAMES[c], TIER[c]] for c in (1, 0, 3, 2)]


def test_who_is_missing_at_the_end_is_counted(tmp_path):
    lines = [*begun(2), ended_round(1), roster(2, absent=[0], left=[1]), ended_round(2)]
    run = read_run(write(tmp_path, *lines))
    assert dict(facts(run))["Clients not there in the last round"] == "2"


def test_a_comparison_takes_each_clients_own_score(tmp_path):
    result = read_result("a", 0, folder_of(tmp_path))
    assert result.clients == AFTER
    assert fairness(result).worst == 0.4
    assert result.scores["high"] == pytest.approx((2 * 0.4 + 3 * 0.8) / 5)


def test_a_baseline_is_scored_at_the_tiers_of_its_clients_by_name(tmp_path):
    """All clients score at every tier; each counts for its own."""
    everyone = [dict.fromkeys(range(4), tier) for tier in ("high", "low")]
    lines = [line for tier in everyone for line in own_scores(1, "test", AFTER, tier)]
    folder = write(tmp_path / "run", *begun(1), trained(1, 0), ended_round(1), *lines, end())
    scored = {"high": ("barn",), "low": ("attic", "den", "nobody")}
    run = as_scored(read_run(folder), scored)
    tested = {e["tier"]: e for e in run.evaluations}
    assert [c["client"] for c in tested["low"]["clients"]] == [0, 3]
    assert tested["high"]["score"] == AFTER[1]
    assert tested["low"]["score"] == pytest.approx((0.5 + 4 * 0.7) / 5)
    assert tested["low"]["loss"] == pytest.approx((2.5 + 4 * 2.3) / 5)
    assert read_result("a", 0, folder, scored=scored).clients == {0: 0.5, 1: 0.4, 3: 0.7}
