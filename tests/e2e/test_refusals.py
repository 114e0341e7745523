"""Mistakes in commands that read a run or an export are said before torch is loaded."""

import json
import subprocess
import sys

import pytest

from fedmoe.cli.main import COMMANDS, RESUMED, fedmoe, main
from fedmoe.cli.sources import PERSONAL

HEADER = {
    "kind": "run",
    "name": "one",
    "model": "base",
    "num_rounds": 1,
    "num_clients": 1,
    "clients_per_round": 1,
}
TIER = {"top_k": 1, "clients": [0], "parameters": 1, "bytes_down": 1, "bytes_up": 1}
TIER |= {"train_flops_per_token": 1.0, "memory_bytes": 1}
MISTAKES = {
    "explain nothing": "nothing: no such folder; expected that of a run",
    "explain empty": "empty is not the folder of a run: ledger.jsonl is missing",
    "explain runs": "ledger.jsonl is missing; there are runs in it, such as bare",
    "explain runs/one --tier hihg": "--tier 'hihg' is not one of 'high'",
    "explain runs/one --data none.jsonl": "--data none.jsonl: no such file or folder",
    "export runs/bare out": "a run with an adapter: adapter-last.safetensors is missing",
    "export runs/one out --which best": "adapter-best.safetensors is missing",
    "export runs/one empty": "empty exists already; name a folder that does not",
    "export runs/one out --tier hihg": "--tier 'hihg' is not one of 'high'",
    "export runs/one out --dtype float16": "--dtype is for merged models",
    "export runs/one out --for merged --dtype q8_0": "q8_0 is a form of GGUF files",
    "export runs/one out --check vllm": "--check vllm needs --for merged",
    "export runs/one out --for llama.cpp": "GGUF is written of olmoe",
    "export runs/one out --for sglang": "a gpt_oss model has all experts of a layer in one weight",
    "export runs/personal out": "a run of 'fedsa_lora' has no common model: its clients keep",
    "serve runs/personal": "a run of 'fedsa_lora' has no common model",
    "evaluate runs/personal": "a run of 'fedsa_lora' has no common model",
    "generate --run runs/personal hi": "a run of 'fedsa_lora' has no common model",
    "serve ./nothing": "./nothing: no such folder",
    "serve runs/bare": "adapter-last.safetensors is missing",
    "serve empty": "empty is not the folder of a run, an exported adapter or a model",
    "serve gguf": "gguf is an export for llama.cpp: its README.md has the commands that serve it",
    "evaluate ./nothing": "./nothing: no such folder",
    "evaluate gguf": "gguf is an export for llama.cpp",
    "evaluate runs/one --tier hihg": "--tier 'hihg' is not one of 'high'",
    "evaluate mini --tier high": "mini is no run, and so has no tiers",
    "evaluate runs/one --data none.jsonl": "--data none.jsonl: no such file or folder",
    "evaluate runs/one --answers empty": "empty is a folder; name a file",
    "evaluate runs/one --answers a/b": "a/b: there is no folder a",
    "evaluate runs/one --harness rows --harness-python no": "--harness-python no: no such",
    "generate --run nothing hi": "nothing: no such folder; expected that of a run",
    "generate --adapter nothing hi": "nothing: no such folder",
    "generate --adapter empty hi": "empty is not the folder of a run, an exported adapter",
    "generate --run runs/one --tier hihg hi": "--tier 'hihg' is not one of 'high'",
}


def test_a_mistake_is_said_before_torch_is_loaded(tmp_path):
    for name in ("empty", "runs/one", "runs/bare", "runs/personal", "gguf", "base"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("one", "bare", "personal"):
        header = json.dumps(HEADER | {"tiers": {"high": TIER}})
        (tmp_path / f"runs/{name}/ledger.jsonl").write_text(f"{header}\n")
    for name in ("one", "personal"):
        (tmp_path / f"runs/{name}/adapter-last.safetensors").touch()
    (tmp_path / "runs/personal/config.yaml").write_text("aggregation: {name: fedsa_lora}\n")
    (tmp_path / "base/config.json").write_text('{"model_type": "gpt_oss"}')
    facts = json.dumps({"writes": "gguf", "reader": "llama.cpp"})
    (tmp_path / "gguf/fedmoe-export.json").write_text(facts)
    code = "import sys, json; from fedmoe.cli.main import main\n"
    code += "for words in json.loads(sys.argv[1]):\n"
    code += "    print('>', words, file=sys.stderr, flush=True)\n"
    code += "    assert main(words.split()) == 2, words\n"
    code += "    assert 'torch' not in sys.modules, words"
    command = [sys.executable, "-c", code, json.dumps([*MISTAKES])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    said = dict(part.split("\n", 1) for part in done.stderr.split("> ")[1:])
    for words, expected in MISTAKES.items():
        assert expected in said[words], (words, said[words])


def test_the_families_that_are_refused_are_those_that_have_no_form():
    from fedmoe.export.formats import NO_ADAPTER
    from fedmoe.models.families import FAMILIES

    assert {name for name, family in FAMILIES.items() if family.no_peft} == {*NO_ADAPTER}


def test_the_strategies_that_are_refused_are_those_that_say_so():
    from fedmoe.aggregation import STRATEGIES
    from fedmoe.comparison.baselines import LocalOnly

    found = {kind.name for kind in (*STRATEGIES, LocalOnly) if kind.personal}
    assert found == {*PERSONAL}


@pytest.mark.parametrize("name", ["run", "serve", "explain"])
def test_after_ctrl_c_only_commands_that_resume_say_so(name, monkeypatch, capsys):
    assert {*RESUMED} < {*COMMANDS}

    def interrupt(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fedmoe.commands[name], "callback", interrupt)
    assert main([name, "anything"]) == 130
    said = capsys.readouterr().err
    assert said.startswith("fedmoe: interrupted")
    assert ("--resume auto" in said) == (name == "run")
