r"""Server optimisers on products: for strategies whose state means a product BA, not its factors.

The change of an expert's weight is $\Delta_t = B' A' - B A$, and the rules of `server_optimizer`
apply to it, but that $v$ is one number for each weight matrix (of each expert):

$$m_t = \beta_1 m_{t-1} + (1 - \beta_1) \Delta_t, \qquad
  v_t = \mathrm{second}(v_{t-1}, \|\Delta_t\|_F^2 / mn), \qquad
  B A \leftarrow B A + \frac{\eta}{\sqrt{v_t} + \tau} \, m_t$$

Nothing dense is formed: $m$ is kept as factors of the state's rank, and sums are cut back to their
ranks by `best_factors`, exact while the ranks suffice; the norm comes from the singular values.

Source: ours, from Reddi et al. 2020 (arXiv:2003.00295). Squares of single values would need the
dense matrix; one mean square for a block of values is what Adam-mini does (Zhang et al. 2024,
arXiv:2406.16793). As in `server_optimizer` an expert that the round did not change stays
bit-identical with its memory, and what is no product (routers' shifts) goes value by value.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedmoe.adapter import Adapter
from fedmoe.aggregation.factored import best_factors
from fedmoe.aggregation.products import Pair, pairs
from fedmoe.aggregation.server_optimizer import Memory, Rule, first_memory, step_values

Views = dict[str, Tensor]


def step_products(
    rule: Rule, old: Adapter, proposed: Adapter, memory: Memory, free: int
) -> tuple[Adapter, Memory]:
    """The next global adapter and memory.

    Args:
        rule: how to step.
        old: the state before the round.
        proposed: the strategy's next state.
        memory: float64, of the layout of the state; `v` has its number at every value of a pair.
        free: how many of the first components take the step; those behind them stay as proposed.
    """
    before = memory or first_memory(rule, old.flat.double())
    made, after = step_values(rule, old, proposed, before)  # right for what is no product
    layout = old.layout
    was, told, ends = old.views(), proposed.views(), made.views()
    kept = {name: (_views(old, before[name]), _views(old, after[name])) for name in before}
    for pair in pairs(layout):
        _step_pair(rule, pair, was, told, ends, kept, free)
    return made, after


def _views(of: Adapter, flat: Tensor) -> Views:
    return {entry.name: view for entry, view in of.layout.views(flat)}


def _step_pair(
    rule: Rule,
    pair: Pair,
    was: Views,
    told: Views,
    ends: Views,
    kept: dict[str, tuple[Views, Views]],
    free: int,
) -> None:
    """Write the new factors of one pair over `ends`, and its memory over the second of `kept`."""
    (m, new_m), (v, new_v) = kept["m"], kept["v"]
    old, proposed, momentum = ((x[pair.B], x[pair.A]) for x in (was, told, m))
    changed = [(x != y).flatten(-2).any(-1) for x, y in zip(old, proposed, strict=True)]
    moved = (changed[0] | changed[1])[..., None, None]
    rank = old[1].shape[-2]

    _, _, sigma = _sum([(1.0, proposed), (-1.0, old)], rank)
    size = old[0].shape[-2] * old[1].shape[-1]
    v_block = rule.second(v[pair.A][..., 0, 0], sigma.square().sum(-1) / size)
    keep, take = rule.weights
    m_b, m_a, _ = _sum([(keep, momentum), (take, proposed), (-take, old)], rank)
    rest = (proposed[0][..., free:], proposed[1][..., free:, :])
    b, a, _ = _sum([(1.0, old), (rule.rate(v_block), (m_b, m_a)), (-1.0, rest)], free)

    alive = a.any(-1, keepdim=True)  # a component of value zero keeps its row of A
    a = torch.where(alive, a.float(), proposed[1][..., :free, :])
    for name, first, value in ((pair.B, b.float(), old[0]), (pair.A, a, old[1])):
        whole = told[name].clone()
        whole.narrow(-1 if name == pair.B else -2, 0, free).copy_(first)
        ends[name].copy_(torch.where(moved, whole, value))
    for name, value in ((pair.B, m_b), (pair.A, m_a)):
        new_m[name].copy_(torch.where(moved, value, m[name]))
        spread = v_block[..., None, None].expand_as(v[name])
        new_v[name].copy_(torch.where(moved, spread, v[name]))


def _sum(
    terms: list[tuple[float | Tensor, tuple[Tensor, Tensor]]], rank: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The best factors (B, A) in float64 of a weighted sum of products, and its singular values."""
    like = terms[0][1][0].double()[..., 0, 0]
    weights = torch.stack([torch.as_tensor(w).double().expand_as(like) for w, _ in terms])
    Bs, As = ([pair[i].double() for _, pair in terms] for i in (0, 1))
    return best_factors(weights, [1.0] * len(terms), Bs, As, rank)
