"""What happened in a run, written as it happens and shown afterwards.

In reading order:
    json_text.py    values as strict JSON
    ledger.py       one JSON line per event, written during the run
    atomic.py       files that are replaced whole
    run.py          a run's folder as one value
    units.py        numbers for people
    headline.py     the result in one sentence
    tables.py       the tables, as text; levers.py that of memory against score
    figures.py      the look of all plots; plots_*.py draw them, plots.py lists them
    page.py         report.html, of page_parts.py; page_style.py is its style sheet
    summary.py      summary.md
    comparison/     many runs side by side

To add a plot, write a function `Run -> Figure | None` and list it in `plots.PLOTS`; to add a
table, write a function `Run -> Table` and put it where `page` or `summary` shows it.
"""

import warnings
from pathlib import Path

from fedmoe.errors import FedMoEWarning
from fedmoe.report.ledger import Ledger, read_ledger
from fedmoe.system.extras import install, missing

__all__ = ["Ledger", "read_ledger", "write_report"]


def write_report(folder: Path) -> None:
    """Write `plots/*.png`, `report.html` and `summary.md` from what else `folder` holds.

    An interrupted run is reported as far as it got, and says so. Without matplotlib there is the
    summary alone, and a warning.

    Raises:
        FedMoEError: no ledger, or a damaged one.
    """
    # Only a report needs matplotlib and numpy; a run that writes its ledger does not.
    from fedmoe.report.page import render_page
    from fedmoe.report.run import read_run
    from fedmoe.report.summary import render_summary
    from fedmoe.system.files import write_bytes, write_text

    run = read_run(folder)
    write_text(folder / "summary.md", render_summary(run))
    if missing("matplotlib"):
        said = "matplotlib is not installed: no report.html and no plots were written; run"
        warnings.warn(f"{said}: {install('report')}", FedMoEWarning, stacklevel=2)
        return
    from fedmoe.report.plots import draw_plots

    pictures = draw_plots(run)
    (folder / "plots").mkdir(exist_ok=True)
    for picture in pictures:
        write_bytes(folder / "plots" / f"{picture.name}.png", picture.png)
    write_text(folder / "report.html", render_page(run, pictures))
