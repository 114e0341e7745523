"""Triton's kernels of the expert path, in its interpreter, against the loop of `test_experts`."""

import importlib
import os
import subprocess
import sys

import pytest
import torch
from test_experts import NAMES, SCALE, draw, outcome, slow_experts
from torch import nn

from fedmoe.models import experts, kernels, routed
from fedmoe.models.memory.stored import quantised

pytest.importorskip(
    "triton", reason="the kernels of fedmoe/models/fused.py are NOT tested: Triton is not installed"
)
# numpy computes the interpreter's sigmoid, of rows that nothing reads as well.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
SIZE = {"width": 8, "inner": 12, "rank": 4}
NUM_EXPERTS = 3


@pytest.fixture
def fused(monkeypatch):
    """The kernels, interpreted; nobody is told sizes, and memory not written to is NaN."""
    for module in (routed, experts):
        monkeypatch.setattr(module, "unwaited", lambda x: True)
    torch.use_deterministic_algorithms(True)
    yield importlib.import_module("fedmoe.models.fused")
    torch.use_deterministic_algorithms(False)


def outcomes(fused, dtype, bits8=False, sentinels=0.3, tokens=4, **size):
    """The output and the gradients of all but the weights, by the kernels and by the loop."""
    size = SIZE | size
    leaves, index = draw(tokens, (NUM_EXPERTS, 2), 1, sentinels, dtype, **size)
    index[index == 1] = NUM_EXPERTS  # an expert without rows
    frozen = [leaf.requires_grad_(False) for leaf in leaves[2:4]]
    exact = [leaf.detach().double().requires_grad_(leaf.requires_grad) for leaf in leaves]
    if bits8:
        frozen = [quantised(w, "int8") for w in frozen]
        exact[2:4] = [w[0:NUM_EXPERTS].double() for w in frozen]
    assert all(map(fused.readable, frozen))

    def kernels(x, weights, index, w1, w2, factors, act):
        routing = routed.route(index, NUM_EXPERTS)
        return fused.FusedExperts.apply(x, weights, *factors, SCALE, routing, frozen)

    pairs = ((kernels, leaves), (slow_experts, exact))
    return [outcome(function, given, index, nn.SiLU()) for function, given in pairs]


def assert_near(found, tolerance):
    for name, a, b in zip(("out", *NAMES[:2], *NAMES[4:]), *found, strict=True):
        assert (a.double() - b).norm() <= tolerance * b.norm(), name


@pytest.mark.parametrize(
    ("dtype", "bits8", "tolerance"), [(torch.float32, False, 1e-5), (torch.bfloat16, True, 2e-2)]
)
def test_values_and_gradients_match_the_loop(fused, dtype, bits8, tolerance):
    assert_near(outcomes(fused, dtype, bits8), tolerance)


def test_a_layer_without_lora_and_without_rows_is_computed(fused):
    assert_near(outcomes(fused, torch.float32, rank=0, tokens=2), 1e-5)
    found = outcomes(fused, torch.float32, sentinels=1.0, tokens=2)
    assert all(part.eq(0).all() for part in found[0])


@pytest.mark.slow
@pytest.mark.parametrize("bits8", [False, True])
def test_several_tiles_of_rows_columns_and_depth_match_the_loop(fused, monkeypatch, bits8):
    """Under a minute in the interpreter: three tiles and more each way."""
    monkeypatch.setattr(fused, "tile", lambda size: 16)
    found = outcomes(fused, torch.float32, bits8, tokens=30, width=72, inner=40, rank=12)
    assert_near(found, 1e-5)


def test_an_experts_module_takes_the_kernels_where_they_have_a_form(fused, tiny_model, monkeypatch):
    """And torch's way for what they have none for, here recomputation."""
    model = tiny_model("olmoe", num_hidden_layers=1)
    module, state = model.layers[0].experts, model.states[0]
    state.valid = torch.arange(3) < 2
    started = []
    apply = fused.FusedExperts.apply
    seen = staticmethod(lambda *given: started.append(1) or apply(*given))
    monkeypatch.setattr(fused.FusedExperts, "apply", seen)
    x, weights = torch.ones(3, 32), torch.ones(3, 1)
    index = torch.tensor([[1], [2], [3]])
    found = []
    for state.fused, state.recompute in ((False, False), (True, True), (True, False)):
        with torch.no_grad():
            found.append(experts.experts_forward(module, x, index, weights))
    assert len(started) == 1
    for out in found[1:]:
        torch.testing.assert_close(out, found[0], rtol=1e-5, atol=1e-6)
    assert found[2][2].eq(0).all()


@pytest.mark.slow
def test_the_kernels_compile_for_gpus_of_two_generations():
    """To machine code, in a process that does not interpret them; nothing is run on a GPU."""
    ran = subprocess.run(
        [sys.executable, "-c", COMPILED], env=os.environ | {"TRITON_INTERPRET": "0"}
    )
    assert ran.returncode == 0


COMPILED = """
import triton.language as tl
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from fedmoe.models import fused

def built(function, pointers, constants, capability):
    names, types = function.arg_names, pointers | {"scale": "fp32"}
    signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in names}
    places = {(names.index(n),): value for n, value in constants.items()}
    target = GPUTarget("cuda", capability, 32)
    assert b"ELF" in compile(ASTSource(function, signature, places), target=target).asm["cubin"]

whole = "x scales low gate_up h out weights left right".split()
both = {n: "*bf16" for n in whole} | {"a": "*fp32", "b": "*fp32", "sums": "*fp32"}
both |= {"slot": "*i64", "ends": "*i32"}
for capability in (80, 90):
    for end, scaled in ((fused.GATE, 1), (fused.SUM, 0), (fused.GATE_BACK, 2)):
        shape = {"TOP_K": 8, "END": end.value, "GATHERS": end.value != 0, "WEIGHS": end.value != 1}
        shape |= {"SCALED": scaled, "RANK": 32, "EXPERTS": 64, "POWER": 64, "ROWS": 64}
        shape |= {"COLUMNS": 64, "DEPTH": 64, "KIND": tl.bfloat16}
        built(fused._product, both | {"w": "*i8" if scaled else "*bf16"}, shape, capability)
    shape = {"TOP_K": 8, "GATHERS": 1, "WEIGHS": True, "ROWS": 32, "LEFT": 64, "RIGHT": 16}
    built(fused._outer, both | {"out": "*fp32"}, shape | {"KIND": tl.bfloat16}, capability)
"""


@pytest.mark.usefixtures("fused")
def test_the_kernels_are_tried_out_before_a_run_relies_on_them():
    kernels.try_out(torch.device("cpu"))
