"""The private parts of torch and transformers that models need; each may go with any release.

torch 2.13: fake tensors and dispatch modes are documented, in modules whose names begin with an
underscore. transformers 5.23: the default gate of an experts module; the way from a config to a
model of a given class; the search for packed sequences, which takes a fake one for several; the
way from fused weights back to a checkpoint's names; and the step that puts a loaded weight in its
place. transformers is imported where it is used: it takes seconds, which a config needs not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode


def own_gate(experts: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """Return how an experts module combines gate and up; None where it is transformers' default."""
    from transformers.integrations.moe import _default_apply_gate

    if getattr(type(experts), "_apply_gate", _default_apply_gate) is _default_apply_gate:
        return None
    return experts._apply_gate  # pyright: ignore[reportReturnType]


def map_tensors(model: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
    """Replace the data of every parameter and buffer of `model` by what `function` returns."""
    model._apply(function)


def from_config(kind: Any, config: Any, **options: Any) -> nn.Module:
    """Return a model of a class that no `Auto` class of transformers knows, of random weights."""
    return kind._from_config(config, **options)


def checkpoint_names(model: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by parameter as a checkpoint has them: renamed, and split where it does."""
    from transformers.core_model_loading import revert_weight_conversion

    return revert_weight_conversion(model, tensors)


@contextmanager
def placed_while_loading(place: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Give each weight that transformers loads inside to `place` before the next one is read."""
    from transformers import core_model_loading

    put = core_model_loading.set_param_for_module

    def placing(model: Any, name: str, weight: Tensor, *others: Any) -> None:
        put(model, name, place(weight), *others)

    with (
        replaced(core_model_loading, "set_param_for_module", placing),
        # The one setting that is asked for there: no threads, which would read far ahead.
        replaced(core_model_loading, "is_env_variable_true", lambda name: True),
    ):
        yield


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Let tensors that are made inside have shapes and no values."""
    with one_text_a_row(), FakeTensorMode(allow_non_fake_inputs=True):
        yield


@contextmanager
def one_text_a_row() -> Iterator[None]:
    """Let transformers not look for packed sequences, which makes the host wait for a GPU."""
    from transformers import masking_utils

    with replaced(masking_utils, "find_packed_sequence_indices", lambda *_, **__: None):
        yield


class SeenBy(TorchDispatchMode):
    """A context in which `see` is given each tensor that an operation returns."""

    def __init__(self, see: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.see = see

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.see(tensor)
        return out


@contextmanager
def replaced(holder: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute of a module, of either sort, while the context lasts."""
    own, before = name in vars(holder), getattr(holder, name)
    setattr(holder, name, value)
    try:
        yield
    finally:
        delattr(holder, name)
        if own:
            setattr(holder, name, before)
