"""Budgets: the number of experts that each client activates.

In reading order:
    levels.py     fixed tiers from the YAML
    cost.py       what a tier costs: parameters, bytes, FLOPs, memory
    probe.py      what a machine has free: memory, processors, disk, link
    shape.py      the numbers of a model that memory and time follow from
    model.py      memory and seconds of a step, predicted
    measure.py    the same of a real step, measured
    calibrate.py  constants of a machine from a few measured steps
    work.py       a client's round, as far as its cost depends on it
    plan.py       the largest k that fits, and why not one more
    replan.py     the same again between rounds, and after running out of memory
    auto.py       tiers whose k is planned from their device

To add a policy: a `@section` that derives from `Budget`, named in `BUDGETS`; from outside this
package no list is needed.
"""

from fedmoe.budget.auto import Auto
from fedmoe.budget.levels import Budget, Levels, Tier
from fedmoe.section import Open

BUDGETS = Open("fedmoe.budgets", Budget, (Levels, Auto))
"""What `budget` in a configuration may name."""

__all__ = ["BUDGETS", "Auto", "Budget", "Levels", "Tier"]
