"""An adapter's changes of weights, in the names and shapes of the model's checkpoint.

transformers fuses a layer's experts when it loads a checkpoint; engines read the checkpoint's own
names, with one weight per expert in most families. transformers knows the way back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedmoe.adapter import SHIFT, Adapter
from fedmoe.errors import ModelError
from fedmoe.models.families import family_of
from fedmoe.models.families.ungated import each_linear
from fedmoe.models.private import checkpoint_names


@dataclass(frozen=True)
class Change:
    """The change of one weight of transformers' model: `scale * B A`, or a whole difference."""

    weight: str
    """The parameter's name."""
    a: Tensor | None
    """(rank, in), of each expert if there are three dimensions; None: `b` is the difference."""
    b: Tensor
    transposed: bool = False
    """True for a weight (experts, in, out)."""

    @property
    def layer(self) -> int | None:
        """The number of the decoder layer; None outside of them."""
        found = re.search(r"\.(\d+)\.", self.weight)
        return int(found[1]) if found else None

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's own shape."""
        if self.a is None:
            return tuple(self.b.shape)
        *experts, out, into = *self.b.shape[:-1], self.a.shape[-1]
        return (*experts, into, out) if self.transposed else (*experts, out, into)

    def dense(self, scale: float) -> Tensor:
        """Return the difference in the weight's own shape."""
        if self.a is None:
            return self.b
        product = self.b @ self.a * scale
        return product.mT if self.transposed else product


def changes_of(adapter: Adapter, base: nn.Module) -> list[Change]:
    """Return the changes of an adapter, by the parameters of transformers' model.

    Args:
        adapter: LoRA and shifts of routers; a modulation has no weight to change.
        base: the model as transformers builds it; its weights are not read.
    """
    family, views = family_of(base), adapter.views()
    names = dict(base.named_parameters())
    found = []
    for name, view in views.items():
        path, _, kind = name.rpartition(".")
        if kind == SHIFT:
            (weight,) = (
                n for n, p in names.items() if n.startswith(f"{path}.") and p.shape == view.shape
            )
            found.append(Change(weight, None, view))
        elif kind == "B":
            a = views[f"{path}.A"]
            if view.dim() == 3 and family.linears:
                experts = zip(each_linear(path, base, family), a, view, strict=True)
                found += [Change(f"{p}.weight", one_a, one_b) for p, one_a, one_b in experts]
            else:
                weight = path if path in names else f"{path}.weight"
                found.append(Change(weight, a, view, view.dim() == 3 and family.form.transposed))
    return found


def in_checkpoint(base: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors that stand for parameters of `base` by the checkpoint's names for them.

    A layer's experts are split as the checkpoint has them, and so are factors `B`, whose rows are
    those of the weight.
    """
    return checkpoint_names(base, dict(values))


def factors_in_checkpoint(
    base: nn.Module, changes: Iterable[Change]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield each changed weight of the checkpoint with its factors A and B, expert by expert.

    The gate and the up-projection of an expert share A, and have half of B's rows each.

    Raises:
        ModelError: the checkpoint has a layer's experts in one weight, or a weight is no product.
    """
    for change in changes:
        if change.a is None:
            raise ModelError("a trained router has no factors; `--for merged` exports it")
        parts = in_checkpoint(base, {change.weight: change.b})
        if change.b.dim() == 2:
            yield next(iter(parts)), change.a, change.b
            continue
        number = torch.arange(len(change.b)).view(-1, 1, 1).expand(*change.b.shape[:2], 1)
        experts = in_checkpoint(base, {change.weight: number})
        for name, part in parts.items():
            if part.dim() != 2:
                raise ModelError(f"the checkpoint has all experts of a layer in one weight, {name}")
            yield name, change.a[int(experts[name][0, 0])], part
