"""`fedmoe compare`: variants of one experiment over several seeds and cases, all else equal.

Within a case and a seed every variant has the same data split, partition, client samples, initial
adapter and evaluation: a variant may change neither the settings that they depend on nor the tiers'
names. A finished run is not repeated. Runs follow one another, each on all its workers: 21 runs of
the quickstart on two workers kept both cores at useful work 95 % of their time, so running two of
them side by side, each on one worker, could save at most 5 %, for twice the memory.

In reading order:
    config.py    the YAML file: variants, cases, seeds, and the search for settings
    baselines.py variants made from the experiment; arms.py: those of a rank method at equal cost
    plan.py      every run, checked before the first one starts
    search.py    the same few settings tried for every variant, and the best of them
    bracket.py   whether the best lies inside its grid, and the values to add where it does not
    runs.py      one run, or its result if it has ended already
    board.py     the live table of the whole comparison
    compare.py   all of it in turn; `fedmoe.cli.compare` calls it
    finished.py  the same report of finished runs that no comparison has planned
and its report, whose unit is the seed and whose primary outcome is the loss per token:
    result.py    one finished run as numbers; fairness.py: how evenly its clients are served
    study.py     the whole comparison as one value: cases, their results, the search
    paired.py    simultaneous paired intervals, and the least difference that they show
    verdicts.py  those of every variant and tier against the reference
    outcomes.py  the tables of losses and of scores, and what they cannot show
    headline.py  the first sentences: what can and what cannot be concluded
    targets.py   the cost of a target; tables.py: other tables of a case
    study_tables.py those of the whole comparison
    plots.py     the plots of a case, drawn by plots_*.py
    files.py     Markdown, CSV, JSON, and comparison.html from templates/

To add a table, write a function `Case -> TextTable` and list it in `files.py`; to add a plot, a
function `Case -> Figure | None` and its line in `plots.py`.
"""

from fedmoe.comparison.compare import compare, run_comparison
from fedmoe.comparison.finished import compare_runs
from fedmoe.comparison.plan import planned

__all__ = ["compare", "compare_runs", "planned", "run_comparison"]
