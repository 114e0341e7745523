"""Which kernels compute experts on a GPU is said with the reason, and nothing falls back unsaid."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fedmoe.errors import ModelError
from fedmoe.models import kernels
from fedmoe.models.build import ModelSettings
from fedmoe.models.kernels import check_kernels, kernels_note

PLAIN = ("full", False, False)


class Experts(nn.Module):
    def __init__(self, act, has_bias=False):
        super().__init__()
        self.act_fn, self.has_bias = act, has_bias
        for name in ("gate_up_proj", "down_proj"):
            setattr(self, f"{name}_bias", torch.zeros(1))


def on_a_gpu(act=None, has_bias=False, dropout=0.0):
    layer = SimpleNamespace(experts=Experts(act or nn.SiLU(), has_bias))
    return SimpleNamespace(device=torch.device("cuda"), dropout=dropout, layers=[layer])


def test_a_processor_has_no_choice_and_torch_is_the_default_on_a_gpu(monkeypatch):
    on_cpu = SimpleNamespace(device=torch.device("cpu"))
    assert kernels_note(on_cpu, "torch", {"all": PLAIN}) is None
    for spec, why in ((None, "the default"), (1, "model.kernels=triton would fuse them")):
        monkeypatch.setattr(kernels, "find_spec", lambda name, spec=spec: spec)
        said = kernels_note(on_a_gpu(), "torch", {"all": PLAIN})
        assert (
            said
            == f"experts are computed by torch's grouped products (model.kernels: torch; {why})"
        )


def test_every_place_without_a_form_of_tritons_is_named():
    tiers = {"a": PLAIN, "b": ("int8", False, False), "c": ("int4", False, False)}
    tiers |= {"d": ("full", True, False), "e": ("full", False, True)}
    said = kernels_note(on_a_gpu(dropout=0.1), "triton", tiers)
    assert said.startswith("experts are computed by Triton's kernels (model.kernels: triton)")
    assert said.split("; ")[1:] == [
        "in training by torch, as LoRA drops inputs (adapter.dropout)",
        "in tier c by torch: its experts are of 4 bits",
        "in tier d by torch: its experts are offloaded, or a subset",
        "in tier e by torch: activations are recomputed, in training",
    ]
    for model, why in (
        (on_a_gpu(has_bias=True), "these experts have biases"),
        (on_a_gpu(nn.GELU()), "their gate is not that of SiLU"),
    ):
        assert kernels_note(model, "triton", tiers) == (
            f"experts are computed by torch, although model.kernels is 'triton': {why}"
        )


def test_triton_that_is_not_there_or_does_not_run_is_a_fault_with_what_to_do(monkeypatch):
    asked = ModelSettings(kernels="triton")
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"not installed: pip install 'fedmoe\[triton\]'"):
        check_kernels(asked, on_gpu=True)
    monkeypatch.setattr(kernels, "find_spec", lambda name: 1)
    # There is no GPU, or no Triton, or nothing to compile with: whatever it is, it is said.
    monkeypatch.setattr(kernels, "route", lambda *_: 1 / 0)
    with pytest.raises(ModelError, match=r"cannot be compiled or run here .*need a C compiler"):
        check_kernels(asked, on_gpu=True)
