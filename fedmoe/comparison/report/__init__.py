"""Many runs side by side: variants of one experiment over paired seeds, in one or more cases.

In reading order:
    result.py     one finished run, as the numbers below are made of
    fairness.py   a client's score, the worst tenth, Jain's index
    paired.py     paired t-interval, Wilcoxon's test, Holm's correction
    study.py      the whole comparison as one value: cases, verdicts, the search
    experts.py    load, starved and captured experts
    tables.py     the tables of a case; about.py those of what was compared
    plots.py      the plots of a case, drawn by plots_*.py
    page.py       comparison.html; markdown.py is the same in short
    files.py      all files in the comparison's folder

To add a table, write a function `Case -> Table` and list it in `page.py` and `markdown.py`; to
add a plot, a function `Case -> Figure | None` and its line in `plots.py`.
"""

from fedmoe.comparison.report.result import MEAN, Result, read_result
from fedmoe.comparison.report.study import Case, Study, Trial, Variant

__all__ = ["MEAN", "Case", "Result", "Study", "Trial", "Variant", "read_result"]
