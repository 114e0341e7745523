"""Reports of runs by other metrics than shares of right answers."""

import json

from report_folder import ledger_lines, make_run

from fedmoe.report.facts import headline
from fedmoe.report.plots_scores import score_per_round
from fedmoe.report.run import read_run
from fedmoe.report.run_tables import test_scores as scores


def run_by(folder, **changes):
    """A run whose evaluations say something else."""
    make_run(folder)
    lines = [x | changes if x["kind"] == "evaluation" else x for x in ledger_lines(folder)]
    (folder / "ledger.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return read_run(folder)


def test_a_run_without_a_score_speaks_of_its_loss(tmp_path):
    others = {"by_label": {}, "metrics": {"token_f1": 0.5}}
    run = run_by(tmp_path / "run", metric="loss", score=None, **others)
    start = "Test loss per token, averaged over 4 budget tiers, fell from 3."
    assert headline(run).startswith(start)
    table = scores(run)
    assert table.note.startswith("Loss per token, before: without an adapter. k:")
    assert table.columns == ["tier", "k", "loss before", "loss after", "token f1", "examples"]
    assert {row[4] for row in table.rows} == {"50.0%"}
    assert score_per_round(run) is None


def test_a_likelihood_is_no_share_of_answers_and_has_no_interval(tmp_path):
    run = run_by(tmp_path / "run", metric="likelihood")
    assert "95% interval" not in scores(run).columns
    assert "interval" not in headline(run)
    assert "95% interval" in scores(run_by(tmp_path / "right")).columns
