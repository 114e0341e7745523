"""vLLM itself on a CPU: merged models answer as ours do, adapters pass its loader or not."""

import pytest
import torch
from exports import exported, record
from family_models import save, tiny_family
from transformers import AutoTokenizer

from fedmoe.export import engine
from fedmoe.models.adapted import AdaptedModel, LoRA
from fedmoe.models.build import ModelSettings
from fedmoe.models.decode import greedy
from fedmoe.models.families import FAMILIES
from fedmoe.models.rescaling import NoRescaling

pytestmark = pytest.mark.slow
ROWS, NEW = 50, 12


@pytest.fixture(scope="module")
def python():
    """The Python of an environment with vLLM, which takes minutes to make."""
    return engine.environment("vllm")


@pytest.fixture
def made(tmp_path, random_adapter):
    """A function that gives a family's folder with heads that vLLM has, its model, an adapter."""

    def make(kind):
        sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
        sizes |= {"head_dim": 32, "vocab_size": 4096}
        base = tiny_family(FAMILIES[kind], **sizes)
        settings = ModelSettings(path=str(save(base, tmp_path / "base")))
        model = AdaptedModel(base, LoRA(rank=8), NoRescaling())
        return settings, model, random_adapter(model.layout)

    return make


def prompts():
    rng = torch.Generator().manual_seed(0)
    return [
        torch.randint(5, 4000, (int(n),), generator=rng).tolist()
        for n in torch.randint(4, 20, (ROWS,), generator=rng)
    ]


@pytest.mark.parametrize("kind", ["olmoe", "mixtral", "qwen3_moe"])
def test_a_merged_model_answers_in_vllm_as_in_training(kind, made, python, tmp_path):
    settings, model, adapter = made(kind)
    tokenizer = AutoTokenizer.from_pretrained(settings.path)
    exported(adapter, model, settings, tmp_path / "out", "merged", tokenizer=tokenizer)
    model.load(adapter)
    ours = greedy(model.model, prompts(), NEW, 0, [1])
    theirs = engine.ask("vllm", python, tmp_path / "out", prompts(), max_new_tokens=NEW, ends=[1])
    assert not theirs.refusal
    # vLLM's ids end with the end token.
    equal = theirs.equal(ours)
    record(kind, "vllm, served", f"{equal} of {ROWS} answers equal")
    assert equal == ROWS


def test_an_adapter_per_expert_passes_the_loader_and_a_fused_one_does_not(made, python, tmp_path):
    """The product itself needs a GPU: its kernel is written in Triton."""
    settings, model, adapter = made("olmoe")
    tokenizer = AutoTokenizer.from_pretrained(settings.path)
    found = {}
    for format in ("vllm", "peft"):
        out = tmp_path / format
        exported(adapter, model, settings, out, format, tokenizer=tokenizer)
        found[format] = engine.ask(
            "vllm",
            python,
            tmp_path / "base",
            prompts()[:2],
            max_new_tokens=2,
            ends=[1],
            adapter=out,
            rank=8,
        ).refusal
    assert "fused 3D MoE weights" in found["peft"]
    assert "fused" not in found["vllm"]
    assert "riton" in found["vllm"], found["vllm"]
    record("olmoe", "vllm adapter, served", "passes the loader, stops at a kernel for GPUs")
