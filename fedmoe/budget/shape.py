"""The numbers of a model and of a round that memory and time follow from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from fedmoe.models.memory.stored import stored_bytes

if TYPE_CHECKING:
    from fedmoe.adapter import Layout
    from fedmoe.models.adapted import AdaptedModel
    from fedmoe.models.memory.saved_tensors import Saved
    from fedmoe.models.memory.stored import Frozen
    from fedmoe.models.memory.subset import Subset

COUNTED = ("olmoe", "mixtral", "qwen3_moe", "granitemoe")
"""Types whose layers are what `budget.model` counts, within 5 %; of others a dry run tells."""


@dataclass(frozen=True)
class Shape:
    """A model with its adapter, as numbers; one on the meta device gives the same."""

    num_layers: int
    num_experts: int
    top_k: int
    """The most experts a token can be given: the model's K."""
    hidden: int
    width: int
    """The width of one expert."""
    vocabulary: int
    rank: int
    query: int
    """Width of a layer's queries, over all heads."""
    key: int
    """The same of its keys, and of its values."""
    norms_queries: bool
    """True if queries and keys have norms of their own, as in OLMoE and Qwen3."""
    adapts_attention: bool
    element_bytes: int
    """Bytes of one frozen weight, and of one activation."""
    weight_bytes: int
    """All frozen weights."""
    adapter: int
    """Values of the adapter."""
    dense: int
    """Frozen weights that every token meets, without the output head."""
    head: int
    """Weights of the output head, which response tokens alone meet."""
    expert: int
    """Frozen weights of one expert of every layer."""
    dense_lora: int
    expert_lora: int
    first: int = 0
    """Weights of the first layer that no gradient passes, as nothing before them learns."""
    on_gpu: bool = False
    saved: Saved | None = None
    """Memory of backward outside experts and LoRA, if a dry run measured it; else it is counted."""
    num_linears: int = 0
    """Linear layers outside the experts that have LoRA."""
    counted: bool = True
    """True if one of the two is known to be right for models of this type."""
    transposed: bool = False
    """True if experts are kept as (in, out), which rows follow that share a scale."""
    weighs_input: bool = False
    """True if each choice of an expert has an input of its own."""
    gated: bool = True
    """True if half of what an expert's first weight puts out gates the other."""

    def experts_bytes(self, frozen: Frozen, subset: Subset | None = None) -> int:
        """All frozen experts in a form, scales included; or those that a subset needs."""
        experts = self.num_layers * num_held(self.num_experts, subset)
        sizes = self.up * self.hidden, self.hidden * self.width
        return sum(
            stored_bytes(experts * size // row, row, frozen, self.element_bytes)
            for size, row in zip(sizes, self.rows, strict=True)
        )

    @property
    def up(self) -> int:
        """Return the output width of an expert's first weight."""
        return 2 * self.width if self.gated else self.width

    @property
    def first_share(self) -> float:
        """The first product's part of an expert's two."""
        return self.up / (self.up + self.width)

    @property
    def rows(self) -> tuple[int, int]:
        """The lengths of rows that an expert's two weights are kept in."""
        return (self.up, self.hidden) if self.transposed else (self.hidden, self.width)


def num_held(num_experts: int, subset: Subset | None) -> int:
    """Experts of each layer whose weights are needed, a merged one included."""
    return num_experts if subset is None else subset.num_held(num_experts)


@dataclass(frozen=True)
class Setting:
    """One micro-batch and how it is trained."""

    top_k: int
    batch_size: int
    """Examples."""
    length: int
    """Tokens of each, padding included."""
    targets: int
    """Response tokens of each: those that have logits."""
    recompute: bool = False
    frozen: Frozen = "full"
    offload: bool = False
    subset: Subset | None = None
    clients: int = 1
    """Clients whose micro-batches share the pass, each with an adapter."""

    @property
    def tokens(self) -> int:
        """Tokens of the pass."""
        return self.clients * self.batch_size * self.length

    @property
    def all_targets(self) -> int:
        """Response tokens of the pass."""
        return self.clients * self.batch_size * self.targets


def shape_of(model: AdaptedModel, layout: Layout | None = None, *, on_gpu: bool = False) -> Shape:
    """The shape of a model, of its adapter in `layout`, and of where it computes.

    Args:
        model: on any device; its weights are not read.
        layout: of the adapter it computes with; the model's own when omitted.
    """
    layout = layout or model.layout
    (num_experts, _, hidden), (_, _, width) = model.layers[0].shapes()
    linears = {
        name.rpartition(".")[2]: module
        for name, module in model.model.named_modules()
        if isinstance(getattr(module, "base", module), nn.Linear)
    }
    query, key = (_out(linears.get(name), hidden) for name in ("q_proj", "k_proj"))
    head: Any = model.form.head(model.model).weight
    dense, expert = frozen_per_token(model)
    dense_lora, expert_lora = low_rank_per_token(layout)
    formula = model.family.model_type in COUNTED
    saved = None if formula else model.saved
    return Shape(
        num_layers=len(model.layers),
        num_experts=num_experts,
        top_k=model.full_top_k,
        hidden=hidden,
        width=width,
        vocabulary=head.shape[0],
        rank=layout.rank,
        query=query,
        key=key,
        norms_queries=any(name.endswith("q_norm") for name, _ in model.model.named_modules()),
        adapts_attention=bool(model.linears),
        element_bytes=head.element_size(),
        weight_bytes=frozen_bytes(model),
        adapter=layout.size,
        dense=dense - head.numel(),
        head=head.numel(),
        expert=expert,
        dense_lora=dense_lora,
        expert_lora=expert_lora,
        first=_first(model, layout) if formula else 0,
        on_gpu=on_gpu or model.device.type == "cuda",
        saved=saved,
        num_linears=len(model.linears),
        counted=formula or saved is not None,
        transposed=model.family.form.transposed,
        weighs_input=model.family.form.weighs_input,
        gated=model.family.form.gated,
    )


def frozen_bytes(model: AdaptedModel) -> int:
    """Bytes of the base model's weights, without the adapter, whose leaves alone want gradients."""
    frozen = (p for p in model.model.parameters() if not p.requires_grad)
    return sum(p.numel() * p.element_size() for p in frozen)


def _out(linear: nn.Module | None, hidden: int) -> int:
    """Return the output width of a projection; the model's width if there is none."""
    return int(getattr(linear, "base", linear).out_features) if linear is not None else hidden  # pyright: ignore


def _first(model: AdaptedModel, layout: Layout) -> int:
    """Return the weights of the first layer that backward leaves out.

    Those that read its input; without LoRA on its attention, all of that and the router.
    """
    named: dict[str, Any] = dict(model.model.named_modules())
    start = next(name for name in named if "q_proj" in name).partition("q_proj")[0]
    sizes = {
        name[len(start) :].partition(".")[0]: module.weight.shape
        for name, module in named.items()
        if name.startswith(start) and "_proj" in name and hasattr(module, "weight")
    }
    adapted = [name[len(start) :] for name in model.linears if name.startswith(start)]
    router: Any = model.layers[0].scorer
    if not adapted:
        return sum(out * into for out, into in sizes.values()) + router.weight.numel()
    sizes.pop("o_proj", None)
    frozen = sum(out * into for out, into in sizes.values())
    return frozen + sum(layout.rank * sizes[name][1] for name in adapted if name in sizes)


def frozen_per_token(model: AdaptedModel) -> tuple[int, int]:
    """Frozen weights a token meets: dense ones, and one expert of every layer."""
    linears = (m for m in model.model.modules() if isinstance(m, nn.Linear))
    dense = sum(linear.weight.numel() for linear in linears)
    scorers = (layer.scorer for layer in model.layers)  # a linear one is counted already
    dense += sum(s.weight.numel() for s in scorers if not isinstance(s, nn.Linear))  # pyright: ignore
    expert = sum(out * into for layer in model.layers for _, out, into in layer.shapes())
    return dense, expert


def low_rank_per_token(layout: Layout) -> tuple[int, int]:
    """LoRA weights a token meets: on dense parts, and on one expert of every layer."""
    sizes = [
        (entry.layer is None, entry.stop - entry.start)
        for entry in layout.entries
        if entry.rank_axis is not None
    ]
    dense = sum(size for is_dense, size in sizes if is_dense)
    return dense, sum(size for is_dense, size in sizes if not is_dense) // layout.num_experts
