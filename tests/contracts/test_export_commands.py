"""The commands in an export's card, as a stranger's shell and programs read them."""

import shlex
import subprocess
from dataclasses import replace

import pytest

from fedmoe.export.formats import FORMATS, Served
from fedmoe.models.folder import model_folder

SERVED = Served("mini", "AutoModelForCausalLM", 8, 2, {}, "olmoe")


@pytest.mark.parametrize("name", ["vllm", "sglang", "llama.cpp-lora"])
def test_a_command_finds_the_built_in_base(name):
    line = FORMATS[name].commands(SERVED)[0]
    place = line[line.index('"$(') : line.rindex(')"') + 2]
    found = subprocess.check_output(["bash", "-c", f"echo {place}"], text=True)
    assert found.strip() == model_folder("mini")


AT_ANOTHER_K = {
    "peft": """from_pretrained("org/base", num_experts_per_tok=1)""",
    "vllm": """--hf-overrides '{"num_experts_per_tok": 1}'""",
    "sglang": """--json-model-override-args '{"num_experts_per_tok": 1}'""",
    "merged": """from_pretrained("my folder", num_experts_per_tok=1)""",
    "llama.cpp": "--override-kv olmoe.expert_used_count=int:1",
    "llama.cpp-lora": "--override-kv olmoe.expert_used_count=int:1",
    "mlx": """'{"num_experts_per_tok": 1}' into 'my folder'/config.json""",
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_engine_is_told_another_k_and_a_folder_with_a_space(name):
    served = replace(SERVED, base="org/base", folder="my folder")
    plain = FORMATS[name].commands(served)
    other = FORMATS[name].commands(replace(served, top_k=1, override={"num_experts_per_tok": 1}))
    changed = "\n".join(line for line in other if line not in plain)
    assert AT_ANOTHER_K[name] in changed
    if not other[0].startswith("from "):
        words = [word for line in other for word in shlex.split(line.lstrip("# "))]
        assert any("my folder" in word for word in words), words
