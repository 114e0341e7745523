"""What a model's folder and tokenizer lack is refused; what of theirs is not followed is said."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, HFValidationError
from safetensors.torch import load_file, save_file
from torch import nn

from fedmoe.cli.main import main
from fedmoe.errors import FedMoEWarning, ModelError
from fedmoe.models.adapted import LoRA
from fedmoe.models.build import MINI, ModelSettings, load_base
from fedmoe.models.conventions import most_positions, take_greedy
from fedmoe.models.decode import greedy
from fedmoe.models.folder import cannot_load
from fedmoe.models.memory.frozen import frozen_digest
from fedmoe.models.memory.meta import meta_model


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of a whole model's folder, to change."""
    return shutil.copytree(tiny_folder, tmp_path / "moe")


def edit(folder, name, **changes):
    path = folder / name
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | changes))


def weights(change):
    def made(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return made


def added_token(folder):
    tokenizer = load_base(ModelSettings())[1]
    tokenizer.add_tokens(["[CALL]", "[/CALL]"])
    tokenizer.save_pretrained(folder)


def no_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()


def adapter_alone(folder):
    for path in folder.iterdir():
        path.unlink()
    edit(folder, "adapter_config.json", base_model_name_or_path="org/base")


def pickled(folder):
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def other_shape(folder):
    edit(folder, "config.json", intermediate_size=8)


def of_config(**changes):
    return lambda folder: edit(folder, "config.json", **changes)


def of_tokenizer(**changes):
    return lambda folder: edit(folder, "tokenizer_config.json", **changes)


NORM = "model.norm.weight"
CODE = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
FAULTS = {
    "tokens without embeddings": (
        added_token,
        r"the tokenizer has 4,098 tokens and the model embeddings of 4,096: the first without one "
        r"is '\[CALL\]' \(4096\)",
    ),
    "no tokenizer": (no_tokenizer, r"no tokenizer: expected tokenizer\.json, .* copy those"),
    "no end token": (of_tokenizer(eos_token=None), "no end token, so that answers would never end"),
    "an end token that is unknown": (
        of_tokenizer(eos_token="</done>"),
        "end token '</done>' is not in its vocabulary; name one that is",
    ),
    "a broken tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        r"holds no tokenizer that can be loaded \(KeyError: 'added_tokens'\)",
    ),
    "weights missing": (weights(lambda t: t.pop(NORM)), rf"1 weights are missing, such as {NORM}"),
    "weights over": (
        weights(lambda t: t.update({"model.extra.weight": torch.ones(2)})),
        r"1 weights belong to no part of the model .*, such as model\.extra\.weight; they would be",
    ),
    "another shape": (
        other_shape,
        r"4 weights have another shape than its config says, such as \S+ \(8 x 32 x 16 in place "
        r"of 8 x 32 x 8\)",
    ),
    "pickled": (pickled, r"pickled \(pytorch_model\.bin\), .* Save the model as safetensors"),
    "an adapter alone": (
        adapter_alone,
        r"an adapter alone, without a model; name its base instead \(org/base\), and set "
        r"adapter\.start",
    ),
    "quantised": (
        of_config(quantization_config={"quant_method": "gptq", "bits": 4}),
        r"quantised \(gptq\); take the model that it was made of",
    ),
    "code that it needs": (
        of_config(model_type="own", auto_map=CODE),
        "its config names code in the folder, and code of a model is never run",
    ),
    "an odd type": (of_config(dtype="float99"), "holds no causal language model .*float99"),
    "a config that is a list": (
        lambda folder: (folder / "config.json").write_text("[1]"),
        "Should have a `model_type` key",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_a_folder_lacks_is_one_sentence(folder, name):
    change, said = FAULTS[name]
    change(folder)
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    with pytest.raises(ModelError, match=said):
        load_base(ModelSettings(path=str(folder)))
    assert not (folder / "ran").exists()


WARNINGS = {
    "sampling": (
        lambda f: edit(f, "generation_config.json", do_sample=True, temperature=0.6),
        "generation config says do_sample: True, temperature: 0.6: not followed",
    ),
    "a penalty": (
        lambda f: edit(f, "generation_config.json", repetition_penalty=1.2, num_beams=2),
        "says num_beams: 2, repetition_penalty: 1.2: not followed",
    ),
    "forced tokens": (
        lambda f: edit(f, "generation_config.json", suppress_tokens=[5], forced_eos_token_id=1),
        r"says forced_eos_token_id: 1, suppress_tokens: \[5\]: not followed",
    ),
    "another end": (
        lambda f: edit(f, "generation_config.json", eos_token_id=[0]),
        r"its generation config ends answers with '<pad>' \(0\), its tokenizer with '<eos>' \(1\)",
    ),
    "an end that is unknown": (
        lambda f: edit(f, "generation_config.json", eos_token_id=[1, 9000]),
        "its config names 9000 as eos_token_id, which its tokenizer lacks",
    ),
    "another beginning": (
        lambda f: (
            edit(f, "config.json", bos_token_id=0),
            edit(f, "generation_config.json", bos_token_id=0),
            edit(f, "tokenizer_config.json", bos_token="<eos>"),
        ),
        r"begins text with '<pad>' \(0\), its tokenizer with '<eos>' \(1\)",
    ),
    "heads for further tokens": (
        weights(lambda t: t.update({"mtp.norm.weight": torch.ones(2)})),
        r"1 weights that guess further tokens, such as mtp\.norm\.weight, are left out",
    ),
    "half precision": (
        of_config(dtype="float16"),
        r"stored in float16; bfloat16 keeps fewer digits; model\.dtype: float32 keeps all",
    ),
    "code that it does not need": (of_config(auto_map=CODE), "names code in its folder, which is"),
    "an adapter beside": (
        lambda f: edit(f, "adapter_config.json", base_model_name_or_path="org/base"),
        r"also holds an adapter, which is not loaded, .* set adapter\.start to this folder",
    ),
}


@pytest.mark.parametrize("name", WARNINGS)
def test_what_is_not_followed_is_said(folder, name):
    change, said = WARNINGS[name]
    change(folder)
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    dtype = "bfloat16" if name == "half precision" else "float32"
    with pytest.warns(FedMoEWarning, match=said) as caught:
        model, _ = load_base(ModelSettings(path=str(folder), dtype=dtype))
    assert len(caught) == 1
    assert model.name_or_path == str(folder)
    assert not (folder / "ran").exists()


def test_a_whole_folder_has_nothing_said_of_it_tied_embeddings_included(folder):
    weights(lambda tensors: tensors.pop("lm_head.weight"))(folder)
    edit(folder, "config.json", tie_word_embeddings=True)
    model, tokenizer = load_base(ModelSettings(path=str(folder)))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert tokenizer.pad_token_id == 0
    load_base(ModelSettings(path=MINI))


def test_an_adapter_beside_a_model_changes_no_weight(folder):
    plain = frozen_digest(load_base(ModelSettings(path=str(folder)))[0])
    edit(folder, "adapter_config.json", base_model_name_or_path="org/base", peft_type="LORA", r=1)
    save_file({"a.weight": torch.ones(1)}, folder / "adapter_model.safetensors")
    with pytest.warns(FedMoEWarning, match="an adapter, which is not loaded"):
        assert frozen_digest(load_base(ModelSettings(path=str(folder)))[0]) == plain


def test_answers_are_greedy_whatever_the_folder_says(folder):
    prompts = [[5, 6, 7, 8]]
    plain = greedy(load_base(ModelSettings(path=str(folder)))[0], prompts, 6, 0, 1)
    says = {"do_sample": True, "top_k": 3, "no_repeat_ngram_size": 1, "suppress_tokens": plain[0]}
    edit(folder, "generation_config.json", **says)
    with pytest.warns(FedMoEWarning, match="no_repeat_ngram_size: 1, suppress_tokens: .*, top_k"):
        model = load_base(ModelSettings(path=str(folder)))[0]
    assert greedy(model, prompts, 6, 0, 1) == plain
    assert [*take_greedy(model)] == []


def test_characters_that_a_vocabulary_loses_are_said(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    own = Tokenizer(models.BPE({letter: n for n, letter in enumerate("$abcde")}, []))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=own, eos_token="$", pad_token="a").save_pretrained(
        folder
    )
    with pytest.warns(FedMoEWarning) as caught:
        load_base(ModelSettings(path=str(folder)))
    said = [str(w.message) for w in caught]
    assert any("like 'é漢🙂', are left out of prompts and responses" in text for text in said)


def test_a_misspelt_folder_is_guessed_and_an_id_says_why_it_cannot_be_had(folder, monkeypatch):
    for path in (f"{folder}e", f"{folder}/../mooe"):
        with pytest.raises(ModelError, match=r"no such folder \(did you mean .*moe\?\)$"):
            load_base(ModelSettings(path=path))
    with pytest.raises(ModelError, match=r"there is no folder .*/nowhere either"):
        load_base(ModelSettings(path=f"{folder}/nowhere/moe"))
    with pytest.raises(ModelError, match="is a file; expected the folder"):
        load_base(ModelSettings(path=str(folder / "config.json")))
    monkeypatch.chdir(folder.parent)
    for load in (load_base, lambda settings: meta_model(settings, LoRA())):
        with pytest.raises(ModelError) as caught:
            load(ModelSettings(path="mooe"))
        assert "(did you mean moe?), and the Hugging Face Hub gives no model" in str(caught.value)
        assert "not in the cache of this machine, and HF_HUB_OFFLINE" in str(caught.value)
        assert "alphanumeric" not in str(caught.value)


def test_the_hubs_refusals_are_told_apart(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    answer = SimpleNamespace(headers={}, request=None)
    reasons = {
        "it is gated; accept its terms": GatedRepoError("401", response=answer),
        "no id looks like that; expected owner/name": HFValidationError("alphanumeric"),
        "the Hub cannot be reached": ConnectionError("no route"),
        "no such file": OSError("no such file"),
    }
    for said, cause in reasons.items():
        error = OSError("no such file")
        error.__cause__ = cause
        assert said in cannot_load("org/model", "model", error)


def test_a_home_folder_is_written_out(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    load_base(ModelSettings(path="~/moe"))
    with pytest.raises(ModelError, match=r"no such folder; there is no folder ~nobody-here either"):
        load_base(ModelSettings(path="~nobody-here/moe"))


def test_learned_positions_end_where_their_embeddings_do(tiny_base):
    assert most_positions(tiny_base()) == (512, False)
    learned = tiny_base()
    learned.wpe = nn.Embedding(128, 4)
    assert most_positions(learned) == (128, True)


@pytest.fixture
def config(folder, tmp_path, monkeypatch):
    rows = [{"prompt": f"say {n}", "response": f"it is {n}"} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = f"""\
name: small
rounds: 1
model: {{path: {folder.name}}}
data: {{name: files, path: rows.jsonl}}
text: {{max_length: 32}}
partition: {{name: iid, num_clients: 2}}
budget: {{tiers: {{all: {{top_k: 4}}}}}}
training: {{steps: 1, batch_size: 2, probe_examples: 4}}
evaluation: {{every: 0, validation_examples: 2, test_examples: 2, max_new_tokens: 2}}
simulation: {{folder: runs}}
"""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(text)
    return tmp_path / "small.yaml"


@pytest.mark.usefixtures("proved_here")
@pytest.mark.filterwarnings("default::fedmoe.errors.FedMoEWarning")
def test_every_command_says_the_same_once_and_finds_a_runs_model_from_anywhere(
    config, folder, tmp_path, capsys, monkeypatch
):
    edit(folder, "generation_config.json", do_sample=True)
    edit(folder, "config.json", max_position_embeddings=32)
    (tmp_path / "else/where").mkdir(parents=True)
    said = "do_sample: True: not followed"
    run, out = "../../runs/small", str(tmp_path / "peft")
    commands = (["check", str(config), "text.max_length=33"], ["run", str(config), "--quiet"])
    commands += (["export", run, out], ["generate", "--run", run, "hi", "--max-new-tokens=32"])
    for words in commands:
        if words[0] == "export":
            monkeypatch.chdir(tmp_path / "else/where")
        assert main(words) == 0
        error = capsys.readouterr().err
        assert error.count("fedmoe: warning:") == 1 + (words[0] in ("check", "generate"))
        assert said in error
        if words[0] == "check":
            assert "text.max_length: 33: model" in error
        if words[0] == "generate":
            assert "32 new ones are more than the 32 that the model is made for" in error


@pytest.mark.filterwarnings("default::fedmoe.errors.FedMoEWarning")
def test_scored_prompts_leave_room_for_their_answers(config, folder, capsys):
    edit(folder, "config.json", max_position_embeddings=16)
    settings = ["text.max_length=16", "evaluation.max_new_tokens=10", "evaluation.test_examples=3"]
    assert main(["check", str(config), *settings]) == 0
    assert "5 of 5 scored prompts have more than 6 tokens" in capsys.readouterr().err
