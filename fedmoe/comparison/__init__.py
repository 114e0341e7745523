"""`fedmoe compare`: variants of one experiment over several seeds and cases, all else equal.

Within a case and a seed every variant has the same data split, partition, client samples, initial
adapter and evaluation: a variant may change neither the settings that they depend on nor the tiers'
names. A finished run is not repeated. Runs follow one another, each on all its workers: 21 runs of
the quickstart on two workers kept both cores at useful work 95 % of their time, so running two of
them side by side, each on one worker, could save at most 5 %, for twice the memory.

In reading order:
    config.py    the YAML file: variants, cases, seeds, and the search for settings
    plan.py      every run, checked before the first one starts
    search.py    the same few settings tried for every variant, and the best of them
    runs.py      one run, or its result if it has ended already
    board.py     the live table of the whole comparison
    compare.py   all of it in turn; `fedmoe.cli.compare` calls it
    finished.py  the same report of finished runs that no comparison has planned
and its report:
    result.py    one finished run as numbers; fairness.py: how evenly its clients are served
    paired.py    paired t-interval, Wilcoxon's test, Holm's correction
    study.py     the whole comparison as one value: cases, verdicts, the search
    headline.py  the result of a case in one sentence
    tables.py    the tables of a case; study_tables.py those of the whole comparison
    plots.py     the plots of a case, drawn by plots_*.py
    files.py     Markdown, CSV, JSON, and comparison.html from templates/

To add a table, write a function `Case -> TextTable` and list it in `files.py`; to add a plot, a
function `Case -> Figure | None` and its line in `plots.py`.
"""

from fedmoe.comparison.compare import compare, run_comparison
from fedmoe.comparison.finished import compare_runs
from fedmoe.comparison.plan import planned

__all__ = ["compare", "compare_runs", "planned", "run_comparison"]
