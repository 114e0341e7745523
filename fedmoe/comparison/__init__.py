"""`fedmoe compare`: variants of one experiment over several seeds and cases, all else equal.

Within a case and a seed every variant has the same data split, partition, client samples, adapter
to start from, and evaluation: a variant may not change what they depend on, nor the tiers' names.
A run that ended is not repeated. Runs follow one another, each on all its workers: 21 runs of the
quickstart on two workers kept both cores at useful work 95 % of their time, so running two of
them side by side, each on one worker, could save 5 % at the very most, for twice the memory.

In reading order:
    config.py   the YAML file: variants, cases, seeds, and the search for settings
    plan.py     every run that is asked for, checked before the first one starts
    search.py   the same few settings tried for every variant, and the best of them
    runs.py     one run, or its result if it has ended already
    board.py    the live table of the whole comparison
    command.py  all of it in turn, and the report; `fedmoe.cli.compare` calls it
"""

from fedmoe.comparison.command import compare
from fedmoe.comparison.plan import planned

__all__ = ["compare", "planned"]
