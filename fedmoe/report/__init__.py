"""A run's ledger, written during the run, and the report made of it afterwards.

In reading order:
    ledger.py       one JSON line per event, written during the run
    run.py          a run's folder as one value
    units.py        numbers as text
    text_table.py   a table of text; run_tables.py makes those of a run
    facts.py        a run in short: status, headline, facts
    expert_load.py  starved and captured experts
    figures.py      the look of all plots; plots_*.py draw them, plots.py lists them
    page.py         report.html and summary.md; templates/ has one style sheet for all pages
    trackers.py     the ledger for TensorBoard, trackio, MLflow or W&B

To add a plot, write a function `Run -> Figure | None` and list it in `plots.PLOTS`; to add a
table, write a function `Run -> TextTable` and list it in `page.py`.
"""

import warnings
from pathlib import Path

from fedmoe.errors import FedMoEWarning
from fedmoe.report.ledger import Ledger, read_ledger
from fedmoe.system.extras import install, missing

__all__ = ["Ledger", "read_ledger", "write_report"]


def write_report(folder: Path) -> None:
    """Write `plots/*.svg`, `report.html` and `summary.md` into a run's folder.

    An interrupted run is reported as far as it got, and the report says so. Without matplotlib
    there is the summary alone, and a warning. A plot that cannot be drawn is replaced by the
    reason, and a warning.

    Raises:
        FedMoEError: the folder has no ledger, or a damaged one.
    """
    # Only a report needs matplotlib and numpy; a run that writes its ledger does not.
    from fedmoe.report.page import render_page, render_summary
    from fedmoe.report.run import read_run
    from fedmoe.system.files import write_text

    run = read_run(folder)
    write_text(folder / "summary.md", render_summary(run))
    if missing("matplotlib"):
        said = "matplotlib is not installed: no report.html and no plots were written; run"
        warnings.warn(f"{said}: {install('report')}", FedMoEWarning, stacklevel=2)
        return
    from fedmoe.report.plots import draw_plots, write_pictures

    pictures = draw_plots(run)
    write_pictures(folder / "plots", pictures)
    write_text(folder / "report.html", render_page(run, pictures))
