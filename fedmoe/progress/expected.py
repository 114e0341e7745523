"""What is known of a run before its model and its data are loaded."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from fedmoe.budget import Levels
from fedmoe.data.federated import Federated
from fedmoe.report.text_table import TextTable

if TYPE_CHECKING:
    from fedmoe.config import Experiment

ALL = 2**31
"""More experts than any model has: a tier that asks for so many asks for all."""


def expected_tiers(experiment: Experiment) -> TextTable | None:
    """Return a row per tier: its k, and its clients where data are shared out among them."""
    budget, clients = experiment.budget, None
    if not isinstance(budget, Levels):
        return None  # k is planned once the model is there
    number = experiment.partition.num_clients
    if number is not None and not isinstance(experiment.data, Federated):
        clients = Counter(budget.assign(number, ALL, experiment.seed))
    rows = []
    for name, tier in budget.resolved(ALL).items():
        k = "all" if tier.top_k == ALL else str(tier.top_k)
        rows.append([name, k, *([str(clients[name])] if clients else [])])
    return TextTable("", ["tier", "k", *(["clients"] if clients else [])], rows, num_words=1)
