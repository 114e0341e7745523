"""llama.cpp itself on a CPU: models and adapters of experts answer as ours do."""

import pytest
import torch
from exports import exported, record
from family_models import save, tiny_family
from transformers import AutoTokenizer

from fedmoe.export import engine
from fedmoe.export.architectures import ARCHITECTURES
from fedmoe.export.exported import Export
from fedmoe.models.adapted import AdaptedModel, LoRA
from fedmoe.models.build import ModelSettings
from fedmoe.models.decode import greedy
from fedmoe.models.families import FAMILIES
from fedmoe.models.rescaling import NoRescaling

pytestmark = pytest.mark.slow
ROWS, NEW = 50, 12


@pytest.fixture(scope="module")
def python():
    """The Python of an environment with llama.cpp, one package of 34 MB."""
    return engine.environment("llama.cpp")


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("form", ["llama.cpp", "llama.cpp-lora"])
def test_llama_cpp_answers_as_in_training(kind, form, python, random_adapter, tmp_path):
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"head_dim": 16, "vocab_size": 4096}
    if kind == "olmoe":
        sizes["num_key_value_heads"] = 4
    if kind == "qwen3_moe":
        sizes["norm_topk_prob"] = True
    base = tiny_family(FAMILIES[kind], **sizes)
    settings = ModelSettings(path=str(save(base, tmp_path / "base")))
    model = AdaptedModel(base, LoRA(rank=8), NoRescaling())
    adapter = random_adapter(model.layout)
    tokenizer = AutoTokenizer.from_pretrained(settings.path)
    done = exported(adapter, model, settings, tmp_path / "out", form, tokenizer=tokenizer)
    generator = torch.Generator().manual_seed(0)
    prompts = [
        torch.randint(5, 4000, (int(n),), generator=generator).tolist()
        for n in torch.randint(4, 20, (ROWS,), generator=generator)
    ]
    model.load(adapter)
    ours = greedy(model.model, prompts, NEW, 0, [1])
    place, more = tmp_path / "out/model.gguf", None
    if form == "llama.cpp-lora":
        place, more = tmp_path / "base.gguf", tmp_path / "out/adapter.gguf"
        assert isinstance(done.source, Export)
        done.source.write_base(place)
    theirs = engine.ask(
        "llama.cpp", python, place, prompts, max_new_tokens=NEW, ends=[1], adapter=more
    )
    assert not theirs.refusal, theirs.refusal
    # llama.cpp's ids end with the end token.
    ours = [ids[: ids.index(1) + 1] if 1 in ids else ids for ids in map(list, ours)]
    equal = theirs.equal(ours)
    record(kind, f"{form}, served", f"{equal} of {ROWS} answers equal")
    assert equal == ROWS
