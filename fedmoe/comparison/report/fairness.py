"""How evenly a strategy serves its clients: each client's score on its own mix of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

ONE_IN = 10


def mix_score(labels: Mapping[str, int], by_label: Mapping[str, float]) -> float | None:
    r"""The expected score of a client on examples that are mixed as its own.

    $$s_c = \sum_l n_{cl}\, s_l \,/\, \sum_l n_{cl}$$

    over the labels l that were tested, with n the client's examples and s the test score of the
    label at the client's tier. None where no label of the client was tested.
    """
    known = {label: n for label, n in labels.items() if label in by_label}
    total = sum(known.values())
    return sum(n * by_label[label] for label, n in known.items()) / total if total else None


def worst_tenth(scores: Sequence[float]) -> float:
    """The mean of the lowest tenth of the scores, rounded up: of 11 scores the lowest 2."""
    # Not 0.1 * n rounded up: in binary that is over 3 for n = 30.
    lowest = sorted(scores)[: -(-len(scores) // ONE_IN)]
    return sum(lowest) / len(lowest)


def jain_index(scores: Sequence[float]) -> float:
    r"""How equal the scores are: 1 if all are the same, 1/n if one client has everything.

    $$J = \left(\sum_i x_i\right)^2 / \left(n \sum_i x_i^2\right)$$

    All zero are all the same: 1.

    Source: Jain, Chiu and Hawe 1984 (DEC research report TR-301, equation 1).
    """
    squares = sum(x * x for x in scores)
    return sum(scores) ** 2 / (len(scores) * squares) if squares else 1.0
