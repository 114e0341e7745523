"""Image classification: an image to one label.

An image is the row of its grey values, 0 to 255, first row of pixels first, and its label one id
behind them: so it travels as a text does. The model sees values from -1 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedmoe.errors import DataError, ModelError
from fedmoe.models.private import from_config
from fedmoe.models.tasks.task import Decoding, Sample, TaskBatch, TaskForm
from fedmoe.models.vit import SparseViT

WHITE = 255


class ImageLabel(TaskForm):
    """The label follows from the state of the token that stands for the whole image."""

    name = "image"
    does = "classify images"
    kind = "sparse image classifier"
    auto = SparseViT
    peft = None

    def load(self, folder: str, config: Any, dtype: torch.dtype) -> tuple[nn.Module, Any]:
        _check_sparse(config)
        return super().load(folder, config, dtype)

    def build(self, config: Any, dtype: torch.dtype, **options: Any) -> nn.Module:
        _check_sparse(config)
        return from_config(SparseViT, config, dtype=dtype, **options)

    def tokenizer(self, folder: str, config: Any) -> Pixels:
        return Pixels(config)

    def head(self, model: nn.Module) -> nn.Module:
        return model.get_submodule("classifier")

    def routed(self, model: nn.Module, batch: TaskBatch) -> list[Tensor]:
        patches = model.get_submodule("vit.embeddings.patch_embeddings").num_patches
        tokens = len(batch.input_ids) * (int(patches) + 1)  # pyright: ignore[reportArgumentType]
        return [torch.ones(tokens, dtype=torch.bool)]

    def hidden(self, model: nn.Module, batch: TaskBatch) -> Tensor:
        body = model.get_submodule("vit")
        return body(pixel_values=as_images(model, batch.input_ids)).last_hidden_state[:, 0]

    def own_logits(self, model: Any, batch: TaskBatch) -> Tensor:
        return model(pixel_values=as_images(model, batch.input_ids)).logits

    def sample(self, model: nn.Module) -> Sample:
        config: Any = model.config
        pixels = config.num_channels * config.image_size**2
        ids = torch.arange(2 * pixels) * 7919 % (WHITE + 1)
        return Sample.of(ids.view(2, pixels), pixels)

    @torch.no_grad()
    def answers(
        self, model: nn.Module, prompts: Sequence[Sequence[int]], decoding: Decoding
    ) -> list[list[int]]:
        """Return the id of the likeliest label."""
        logits = model(pixel_values=as_images(model, torch.tensor(prompts))).logits
        return logits.argmax(-1, keepdim=True).tolist()


class Pixels:
    """An encoder of images, written as grey values, and of labels into ids."""

    pad_token_id = eos_token_id = 0
    """Unused: all images of a model have one size, and a label is one id."""

    def __init__(self, config: Any) -> None:
        side = config.image_size
        self.size = config.num_channels * side * side
        self.names = {int(i): str(name) for i, name in config.id2label.items()}
        self.ids = {name: i for i, name in self.names.items()}

    def __call__(self, images: list[str]) -> dict[str, list[list[int]]]:
        """Return the grey values of images, each written as numbers between spaces.

        Raises:
            DataError: an image is not written so, or is of another size than the model's.
        """
        return {"input_ids": [self._image(image) for image in images]}

    def labels(self, names: list[str]) -> list[int]:
        """Return the ids of labels.

        Raises:
            DataError: a label that the model does not have.
        """
        if unknown := sorted(set(names) - set(self.ids)):
            raise DataError(
                f"{unknown[0]!r} is not a label of the model; it has {', '.join(self.ids)}"
            )
        return [self.ids[name] for name in names]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the names of labels."""
        return " ".join(self.names[i] for i in ids)

    def _image(self, image: str) -> list[int]:
        try:
            values = [int(value) for value in image.split()]
        except ValueError as error:
            raise DataError(
                f"image {image!r:.40}: expected grey values from 0 to {WHITE} between spaces, as "
                "data.name: digits has them; this model classifies images"
            ) from error
        if len(values) != self.size or min(values) < 0 or max(values) > WHITE:
            raise DataError(
                f"image {image!r:.40} has {len(values)} values from {min(values, default=0)} to "
                f"{max(values, default=0)}; the model takes {self.size} from 0 to {WHITE}"
            )
        return values


def as_images(model: nn.Module, ids: Tensor) -> Tensor:
    """Return grey values (images, pixels) as images (images, channels, side, side), -1 to 1."""
    config: Any = model.config
    shape = (-1, config.num_channels, config.image_size, config.image_size)
    weight = next(model.parameters())
    return (ids.to(weight.device).to(weight.dtype) * (2 / WHITE) - 1).view(shape)


def _check_sparse(config: Any) -> None:
    if not getattr(config, "num_experts", 0):
        raise ModelError(
            "a ViT whose config has no num_experts is dense; make it sparse first, with "
            "fedmoe.models.vit.upcycled, as `python -m simulations.vmoe_digits` does"
        )
