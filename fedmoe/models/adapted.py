"""AdaptedModel: one resident frozen model that any client's adapter and budget can be put into."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fedmoe.adapter import Adapter, Layout
from fedmoe.errors import ModelError
from fedmoe.models import experts
from fedmoe.models.adapter_layout import adapter_layout, attention_paths
from fedmoe.models.captured import Graphs
from fedmoe.models.dropout import Dropout
from fedmoe.models.families import MoELayer, check_top_k, install, moe_layers, set_top_k
from fedmoe.models.gating import Gates, Rule, TopKGating
from fedmoe.models.lora import LoRALinear, Shift
from fedmoe.models.memory.frozen import FrozenExperts
from fedmoe.models.memory.saved_tensors import Saved, saved_outside
from fedmoe.models.memory.subset import KeptExperts
from fedmoe.models.modulation import Modulation, modulate
from fedmoe.models.rescaling import Rescaling, check_mass, keep_mass
from fedmoe.models.routed import sent
from fedmoe.models.tasks import TASKS, TaskBatch
from fedmoe.models.tasks.causal import all_states, body_of
from fedmoe.section import section

TOP_K = TopKGating()
Names = Annotated[tuple[str, ...], Field(min_length=1)]


@section
class LoRA:
    """The parts that get LoRA, and its size.

    Example:
        >>> lora = LoRA(rank=16, alpha=32.0)
        >>> lora.alpha / lora.rank
        2.0
    """

    rank: Annotated[int, Field(ge=1)] = 8
    """Rank of every factor pair."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """A delta is `alpha / rank * B A`."""
    scale: Literal["alpha_over_rank", "constant"] = "alpha_over_rank"
    """The rank in that of a tier with a lower one: its own, so that it has the larger scale, or
    with `constant` the adapter's, so that all have one scale (FLoRA's code; arXiv:2409.05976)."""
    attention: bool | Names = True
    """Also adapt the attention projections: all that the family's file names, or a list of them,
    such as [q_proj, v_proj]; an unknown name is answered with those that there are."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the inputs of every `A` that is dropped in training, another one in each step."""
    router: bool = False
    """Train the routers too, as a full difference; by default they are frozen."""
    start: str = ""
    """An adapter to start from, on the server: the folder of a run (its best adapter counts), a
    .safetensors file of one, or a PEFT folder. Rank and alpha may differ: the product stays."""

    def at_rank(self, layout: Layout, rank: int | None) -> Layout:
        """Return the adapter's layout with another rank, at the scale that tiers of it have."""
        if rank in (None, layout.rank):
            return layout
        return layout.with_rank(rank, layout.scale if self.scale == "constant" else None)


class AdaptedModel:
    """A frozen model, its LoRA in one flat buffer, and its current budget.

    Loading an adapter is one copy into `flat`; gradients arrive in the flat `grad`. A forward pass
    counts, per layer and expert, the tokens routed there.
    """

    def __init__(
        self, model: nn.Module, settings: LoRA, rescaling: Rescaling, gating: Rule = TOP_K
    ) -> None:
        self.model = model.requires_grad_(False).eval()
        self.family = install(model)
        self.form = TASKS[self.family.task]
        self.layers = moe_layers(model)
        self.stacks = [self.form.stack(layer.path) for layer in self.layers]
        self.full_top_k = self.layers[0].top_k
        self.top_k = self.full_top_k
        self.rescaling, self.dropout = rescaling, settings.dropout
        self.gates = Gates(self.layers, gating, self.family.model_type, self.full_top_k)
        adapted = attention_paths(model, self.family.attention, settings.attention)
        self.layout = adapter_layout(model, self.layers, settings, adapted).plus(
            self.gates.tensors()
        )
        self.device = next(model.parameters()).device
        self.rescaler = torch.ones(len(self.layers), device=self.device)
        self.graphs: Graphs | None = None
        self.states = [experts.ExpertState() for _ in self.layers]
        self.frozen = FrozenExperts(self.layers, self.states, self.device)
        self.kept = KeptExperts(self.layers, self.states, self.frozen, self.family)
        self.linears: dict[str, LoRALinear] = {}
        self.shifts: list[Shift] = []
        self.modulations: list[Modulation] = []
        self._install(settings, adapted)
        self.bound = self.layout
        self.bind(self.layout)
        if rescaling.reweighs:
            check_mass(self.family)
            for layer in self.layers:
                keep_mass(layer.router, self.full_top_k)

    def load(self, adapter: Adapter) -> None:
        """Put an adapter's values into the model; its rank may be any."""
        if adapter.layout.digest != self.bound.digest:
            self.bind(adapter.layout)
        self.flat.copy_(adapter.flat)

    def read(self) -> Adapter:
        """Return the values now in the model, as a copy in main memory."""
        return Adapter(self.bound, self.flat.to("cpu", copy=True))

    def bind(self, layout: Layout) -> None:
        """Compute with flat buffers of another layout: of the same tensors at another rank."""
        self.bound = layout
        self.flat = torch.zeros(layout.size, device=self.device)
        self.grad = torch.zeros(layout.size, device=self.device)
        leaves = {entry.name: nn.Parameter(view) for entry, view in layout.views(self.flat)}
        for entry, grad in layout.views(self.grad):
            leaves[entry.name].grad = grad  # autograd adds to it, in place
        for i, layer in enumerate(self.layers):
            factors = [leaves[name] for name in _expert_names(layer)]
            self.states[i].lora = experts.ExpertLoRA(*factors, layout.scale)  # pyright: ignore
            if self.shifts:
                self.shifts[i].shift = leaves[f"{layer.router_path}.shift"]
        for path, linear in self.linears.items():
            linear.A, linear.B = leaves[f"{path}.A"], leaves[f"{path}.B"]
            linear.scale = layout.scale
        self.gates.bind(leaves)
        self._modulate(leaves)

    def _modulate(self, leaves: Mapping[str, Tensor]) -> None:
        """Make the routers add the layout's `phi`, where it has any, to their affinities."""
        names = [f"{layer.path}.phi" for layer in self.layers]
        if names[0] in leaves and not self.modulations:
            kind, both = self.family.model_type, zip(self.layers, self.states, strict=True)
            self.modulations = [modulate(x.router, kind, self.full_top_k, y) for x, y in both]
        for name, modulation in zip(names, self.modulations, strict=False):
            modulation.phi = leaves.get(name)

    def set_budget(self, top_k: int, rescaler: Tensor | None = None) -> None:
        """Activate `top_k` experts per token and rescale each layer by `rescaler` (layers,)."""
        self.top_k = top_k
        set_top_k(self.layers, top_k)
        if rescaler is None:
            rescaler = self.rescaling.initial(len(self.layers), self.full_top_k, top_k)
        self.rescaler = rescaler.to(self.device, copy=True)
        changes = self.rescaling.learned or bool((rescaler != 1).any())
        for i, state in enumerate(self.states):
            state.rescaler = self.rescaler[i] if changes else None

    def train_rescaler(self) -> nn.Parameter:
        """Return the rescaler as a leaf that a forward pass differentiates."""
        leaf = nn.Parameter(self.rescaler)
        self.rescale(leaf)
        return leaf

    def rescale(self, rescaler: Tensor) -> None:
        """Rescale each layer's output by `rescaler` (layers, ...) from now on."""
        for state, factor in zip(self.states, rescaler, strict=True):
            state.rescaler = factor

    def set_recompute(self, recompute: bool) -> None:
        """Set whether backward computes the experts' activations again instead of saving them."""
        for state in self.states:
            state.recompute = recompute

    @contextmanager
    def dropping(self, generator: torch.Generator) -> Iterator[None]:
        """Drop inputs of LoRA in the forward passes inside, if the adapter's settings say so."""
        drops = Dropout(self.dropout, generator) if self.dropout else None
        parts = (*self.states, *self.linears.values())
        for part in parts:
            part.drops = drops
        try:
            yield
        finally:
            for part in parts:
                part.drops = None

    def check_top_ks(self, top_ks: set[int]) -> None:
        """Refuse a `top_k` that the model's routers do not honour.

        Raises:
            ModelError: a router chose another number of experts; a family that is not listed
                changes its logits in an unknown way; or a `top_k` is over the model's K where
                weights are those of K experts.
        """
        if self.rescaling.reweighs and max(top_ks) > self.full_top_k:
            raise ModelError(
                f"top_k {max(top_ks)} is over the model's {self.full_top_k}, whose weights "
                "rescaling.by 'mass' shares out"
            )
        check_top_k(self.layers, top_ks)
        if not self.family.listed:
            self._check_logits()

    @torch.no_grad()
    def _check_logits(self) -> None:
        ids = torch.tensor([[0, 1]])
        theirs = self.model(input_ids=ids.to(self.device)).logits
        ours = self.logits(self.hidden(ids, torch.ones_like(ids, dtype=torch.bool)))
        if (ours - theirs).float().norm() > 1e-2 * theirs.float().norm():
            raise ModelError(
                f"{self.family.name} models change their logits behind the output head; such a "
                "family needs a file in fedmoe/models/families with scale_logits"
            )

    @contextmanager
    def counting(self) -> Iterator[Tensor]:
        """Collect routed tokens, int64 (layers, experts), from the forward passes inside.

        Tokens of merged experts are counted in `kept.counts`.
        """
        shape = self.layout.num_layers, self.bound.num_experts
        counts = torch.zeros(shape, dtype=torch.int64, device=self.device)
        self.kept.counts = merged = counts.new_zeros(shape[0])
        for i, state in enumerate(self.states):
            state.counts, state.merged_count = counts[i], merged[i]
        try:
            yield counts
        finally:
            for state in self.states:
                state.counts = state.merged_count = None

    @contextmanager
    def weighing(self) -> Iterator[Tensor]:
        """Collect modulated routers' softmax, summed over tokens, float32 (layers, experts).

        From the forward passes inside; zeros where no router is modulated.
        """
        mass = torch.zeros(self.layout.num_layers, self.layout.num_experts, device=self.device)
        for i, modulation in enumerate(self.modulations):
            modulation.mass = mass[i]
        try:
            yield mass
        finally:
            for modulation in self.modulations:
                modulation.mass = None

    @contextmanager
    def narrowing(self, without: Callable[[int, Tensor, Tensor], Tensor] | None) -> Iterator[None]:
        """Compute no gradient inside for a layer's choices that `without` returns.

        Of its number, its choice and its weights; see `aggregation.narrow_backward`. None: for all.
        """
        for i, state in enumerate(self.states):
            state.without = without and partial(without, i)
        try:
            yield
        finally:
            for state in self.states:
                state.without = None

    def hidden(self, input_ids: Tensor, valid: Tensor) -> Tensor:
        """Return a causal model's last hidden states (batch, length, hidden) of right-padded ids.

        `valid` (batch, length) is False at padding, which reaches no expert.
        """
        with self._meeting([valid.reshape(-1)] * len(self.layers)):
            return all_states(self.model, input_ids)

    def target_logits(self, batch: TaskBatch) -> Tensor:
        """Return the logits (targets, vocabulary) of a batch's targets."""
        return self.logits(self.target_states(batch))

    def target_states(self, batch: TaskBatch) -> Tensor:
        """Return the hidden states (targets, hidden) behind those logits."""
        with self._meeting(self.routed(batch)):
            return self.form.hidden(self.model, batch)

    def routed(self, batch: TaskBatch) -> list[Tensor]:
        """Return, for every sparse layer, a flat bool: True at the real tokens that pass it."""
        stacks = self.form.routed(self.model, batch)
        return [stacks[stack] for stack in self.stacks]

    def num_tokens(self, batch: TaskBatch) -> int:
        """Count the tokens of a batch that reach experts, k of them in every sparse layer."""
        stacks = self.form.routed(self.model, batch)
        return sum(int(stacks[stack].sum()) for stack in set(self.stacks))

    @contextmanager
    def _meeting(self, valid: list[Tensor]) -> Iterator[None]:
        """Route only the tokens that are `valid` at each layer to its experts."""
        once = {id(mask): sent(mask, self.device) for mask in valid}  # layers of a stack share one
        for state, mask in zip(self.states, valid, strict=True):
            state.valid = once[id(mask)]
        try:
            yield
        finally:
            for state in self.states:
                state.valid = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of hidden states: of the next token, or of labels."""
        logits = self.form.head(self.model)(hidden)
        scale = self.family.scale_logits
        return logits if scale is None else scale(self.model.config, logits)

    @cached_property
    def saved(self) -> Saved | None:
        """Bytes saved for backward outside experts, without LoRA's narrow products.

        None where a dry run cannot tell, and for all but causal language models.
        """
        if self.form.name != "causal":
            return None
        body, step = body_of(self.model), self.family.step
        step = step if isinstance(step, int) else int(getattr(self.model.config, step))  # pyright: ignore
        found = saved_outside(body, self.layers, self.full_top_k, step)
        narrow = len(self.linears) * self.bound.rank * next(body.parameters()).element_size()
        return None if found is None else found.without(narrow)

    def _install(self, settings: LoRA, adapted: list[str]) -> None:
        """Put slots for LoRA into the model; `bind` fills them."""
        none = torch.empty(0, 0)
        for layer, state in zip(self.layers, self.states, strict=True):
            setattr(layer.experts, experts.STATE, state)
            if settings.router:
                self.shifts.append(Shift(torch.zeros_like(layer.scorer.weight)))  # pyright: ignore
                parametrize.register_parametrization(
                    layer.scorer, "weight", self.shifts[-1], unsafe=True
                )
        for path in adapted:
            base = self.model.get_submodule(path)
            assert isinstance(base, nn.Linear)
            self.linears[path] = LoRALinear(base, none, none, 1.0)
            parent, _, child = path.rpartition(".")
            setattr(self.model.get_submodule(parent), child, self.linears[path])


def _expert_names(layer: MoELayer) -> list[str]:
    return [f"{layer.path}.{weight}.{factor}" for weight in layer.weight_names for factor in "AB"]
