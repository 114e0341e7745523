"""A small sparse image classifier from scratch: a dense ViT is trained, then upcycled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification
from transformers.utils.logging import disable_progress_bar

from fedmoe.data.digits import of_pretraining
from fedmoe.data.examples import Example
from fedmoe.models.tasks.image import Pixels, as_images
from fedmoe.models.vit import SparseViT, upcycled
from fedmoe.seeds import generator
from fedmoe.system.folders import whole_folder

SIZES = {
    "image_size": 8,
    "patch_size": 2,
    "num_channels": 1,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "id2label": {i: str(i) for i in range(10)},
    "label2id": {str(i): i for i in range(10)},
}
"""An image has 17 tokens: 16 patches, and one that stands for the whole."""


@dataclass(frozen=True)
class Base:
    """Settings of the base."""

    seed: int = 0
    steps: int = 200
    batch_size: int = 64
    learning_rate: float = 2e-3
    num_experts: int = 8
    top_k: int = 4
    sparse_step: int = 2
    """Every other layer is sparse, as in V-MoE (arXiv:2106.05974)."""


def make_base(out: Path, base: Base = Base()) -> SparseViT:
    """Train a dense ViT on its part of the digits, upcycle it, and write it to the folder `out`.

    Every expert is a copy, so that at any k the sparse model computes the dense one.
    """
    disable_progress_bar()
    with whole_folder(out, lambda _: None) as folder:
        dense = trained_dense(of_pretraining(), base)
        routers = generator(base.seed, "vision", "routers")
        sparse = upcycled(dense, base.num_experts, base.top_k, base.sparse_step, routers)
        sparse.save_pretrained(folder)
    return sparse


def trained_dense(examples: Sequence[Example], base: Base) -> ViTForImageClassification:
    """Return a dense ViT trained on the examples: AdamW, its rate falling in half a cosine."""
    with torch.random.fork_rng():  # transformers draws first weights from the global stream
        torch.manual_seed(generator(base.seed, "vision", "weights").initial_seed())
        model = ViTForImageClassification(ViTConfig(**SIZES))
    images, labels = encoded(model, examples)
    optimizer = torch.optim.AdamW(model.parameters(), lr=base.learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, base.steps)
    order = generator(base.seed, "vision", "order")
    for _ in range(base.steps):
        rows = torch.randint(len(images), (base.batch_size,), generator=order)
        loss = F.cross_entropy(model(pixel_values=images[rows]).logits, labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: ViTForImageClassification, examples: Sequence[Example]) -> float:
    """Return the share of examples whose likeliest label is right."""
    images, labels = encoded(model, examples)
    return (model(pixel_values=images).logits.argmax(-1) == labels).double().mean().item()


def encoded(model: ViTForImageClassification, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Return images as the model sees them, and the ids of their labels."""
    pixels = Pixels(model.config)
    ids = torch.tensor(pixels([example.prompt for example in examples])["input_ids"])
    labels = pixels.labels([example.response for example in examples])
    return as_images(model, ids), torch.tensor(labels)
