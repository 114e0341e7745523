"""Numbers that no plot can show: the report is written all the same, and says what is missing."""

import json
import re

import pytest
from report_folder import ledger_lines, make_run

from fedmoe.errors import FedMoEWarning
from fedmoe.report import plots, write_report
from fedmoe.report.units import bytes_text, count_text, number_text, seconds_text

pytestmark = pytest.mark.usefixtures("drawn")

HUGE = 1.7e308


def changed(folder, **by_kind):
    """Change the fields of every line of a kind by functions of the line."""
    lines = [
        line | {k: of(line) for k, of in by_kind.get(line["kind"], {}).items() if k in line}
        for line in ledger_lines(folder)
    ]
    (folder / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def page_of(folder):
    write_report(folder)
    assert (folder / "summary.md").exists()
    return (folder / "report.html").read_text()


def test_extreme_losses_and_seconds_cost_their_plots_and_not_the_report(tmp_path):
    run = make_run(tmp_path / "run", num_clients=4, num_rounds=2)
    once = {"loss_before": lambda c: HUGE if c["round"] == c["client"] == 1 else c["loss_before"]}
    long = {"seconds": lambda c: HUGE if c["client"] else 1.0}
    changed(run, client=once | long, evaluation={"loss": lambda _: HUGE})
    (run / "plots").mkdir()
    (run / "plots/client-losses.svg").write_text("of an earlier report")
    with pytest.warns(FedMoEWarning, match="This plot could not be drawn: ") as said:
        page = page_of(run)
    assert any("plot client-losses" in str(warning.message) for warning in said)
    failed = page.count("This plot could not be drawn: ")
    assert failed >= 2
    assert not (run / "plots/client-losses.svg").exists()
    drawn = [path.stem for path in (run / "plots").glob("*.svg")]
    assert page.count("<figure>") == failed + len(drawn)
    assert "expert-load" in drawn
    assert not re.search(r"\d{100}", page), "nobody can read numbers of 300 digits"


@pytest.mark.parametrize("case", ["one value", "none", "all NaN"])
def test_little_or_no_data_leaves_out_plots_and_says_nothing(tmp_path, case):
    rounds = 1 if case == "one value" else 2
    finished = 0 if case == "none" else None
    run = make_run(tmp_path / "run", num_clients=1, num_rounds=rounds, finished=finished)
    if case == "all NaN":  # which a ledger holds as null
        losses = dict.fromkeys(("loss_before", "loss_after"), lambda _: None)
        changed(run, client=losses, evaluation=dict.fromkeys(("loss", "score"), lambda _: None))
    assert "could not be drawn" not in page_of(run)


def test_whatever_a_plot_raises_is_said_in_its_place(tmp_path, monkeypatch):
    def broken(_run):
        """A caption."""
        raise RuntimeError("no <room>")

    monkeypatch.setattr(plots, "PLOTS", {"broken": broken})
    with pytest.warns(FedMoEWarning, match="plot broken"):
        page = page_of(make_run(tmp_path / "run", num_clients=1, num_rounds=1))
    assert "RuntimeError: no &lt;room&gt;</p><figcaption>A caption." in page


@pytest.mark.parametrize("text", [bytes_text, count_text, number_text, seconds_text])
@pytest.mark.parametrize("value", [HUGE, float("inf"), float("nan"), -HUGE])
def test_every_number_has_a_short_text(text, value):
    assert len(text(value)) < 20
