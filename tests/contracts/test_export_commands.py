"""The commands in an export's card, as a stranger's shell and programs read them."""

import subprocess

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
