"""An adapter trained through a template answers the same in tools that know nothing of fedmoe."""

import json
import subprocess
import sys
import warnings
from importlib.util import find_spec

import pytest
import torch
from family_folders import family_folder
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import fedmoe
from fedmoe.evaluation.evaluate import answer_all
from fedmoe.export.generate import Generator
from fedmoe.export.reload import logits_of
from fedmoe.export.saved import SavedRun
from fedmoe.models.decode import greedy
from fedmoe.runs.data import pooled_data

NUMBERS = ("one", "two", "three", "four", "five")
MOST = 8
TEXTS = {
    "chat": {"template": "chat"},
    "plain": {"template": "plain", "wording": "Ask: {prompt}\nSay: {response}"},
}


@pytest.fixture(scope="module", params=TEXTS)
def trained_run(request, tmp_path_factory):
    """A finished run of a tiny model, its test rows, and the model with its adapter merged."""
    place = tmp_path_factory.mktemp(request.param)
    family_folder("olmoe", place / "model")
    rows = [
        {"prompt": f"say {a} and {b}", "response": b}
        for a in NUMBERS
        for b in NUMBERS
        for _ in range(3)
    ]
    rows = [row | {"prompt": f"{row['prompt']} {n}"} for n, row in enumerate(rows)]
    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    experiment = {
        "rounds": 2,
        "clients_per_round": 2,
        "model": {"path": str(place / "model")},
        "data": {"name": "files", "path": str(place / "rows.jsonl"), "test_share": 0.3},
        "text": TEXTS[request.param],
        "adapter": {"rank": 8},
        "partition": {"name": "iid", "num_clients": 2},
        "budget": {"tiers": {"high": {"top_k": 4}}},
        "training": {"steps": 20, "batch_size": 8, "probe_examples": 4, "learning_rate": 2e-2},
        "evaluation": {"validation_examples": 2, "test_examples": 20, "max_new_tokens": MOST},
        "simulation": {"folder": str(place / "runs")},
    }
    (place / "run.yaml").write_text(json.dumps(experiment))
    folder = fedmoe.run(fedmoe.load_experiment(place / "run.yaml")).folder
    saved = SavedRun.open(folder, "last")
    saved.export(place / "peft", prove=logits_of)
    base = AutoModelForCausalLM.from_pretrained(place / "model", dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = PeftModel.from_pretrained(base, str(place / "peft")).merge_and_unload()
    return saved, merged, place


def test_greedy_answers_are_those_of_transformers_own_pipeline(trained_run):
    saved, merged, place = trained_run
    data = pooled_data(saved.experiment, saved.tokenizer, "causal").sets["test"]
    assert len(data.rows) == 20
    saved.model.load(saved.adapter())
    saved.model.set_budget(saved.model.full_top_k, torch.ones(saved.model.layout.num_layers))
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    ends = sorted({tokenizer.eos_token_id, *(row.ids[-1] for row in data.rows)})
    ours = greedy(
        saved.model.model, [r.prompt for r in data.rows], MOST, tokenizer.pad_token_id, ends
    )
    asked = pipeline("text-generation", model=merged, tokenizer=tokenizer)
    wording = json.loads((place / "peft" / "fedmoe-export.json").read_text())["prompts"]["wording"]
    generator, different = Generator(saved.model, saved.tokenizer, saved.experiment.text), set()
    for example, row, answer in zip(data.examples, data.rows, ours, strict=True):
        if wording["template"] == "chat":
            prompt = [{"role": "user", "content": example.prompt}]
        else:
            prompt = wording["prompt"].replace("{prompt}", example.prompt)
        (found,) = asked(
            prompt, do_sample=False, max_new_tokens=MOST, return_tensors=True, eos_token_id=ends
        )
        ids = found["generated_token_ids"]
        assert [*row.prompt] == ids[: row.prompt_length]
        said = generator.answer(example.prompt, MOST).text
        assert said == tokenizer.decode(answer, skip_special_tokens=True).strip()
        theirs = ids[row.prompt_length :]
        assert theirs == answer[: len(theirs)]
        assert set(answer[len(theirs) :]) <= {tokenizer.pad_token_id}
        different.add(tuple(answer))
    assert len(different) > 3


@pytest.mark.slow
def test_exact_match_is_that_of_the_evaluation_harness(trained_run):
    if find_spec("lm_eval") is None:
        pytest.skip("lm_eval is not installed: pip install lm_eval")
    saved, _, place = trained_run
    data = pooled_data(saved.experiment, saved.tokenizer, "causal").sets["test"]
    saved.model.load(saved.adapter())
    saved.model.set_budget(saved.model.full_top_k, torch.ones(saved.model.layout.num_layers))
    answers = answer_all(saved.model, saved.tokenizer, data.rows, 32, MOST)
    ours = [e.response == a for e, a in zip(data.examples, answers, strict=True)]
    wording = json.loads((place / "peft" / "fedmoe-export.json").read_text())["prompts"]["wording"]
    chat = wording["template"] == "chat"
    tasks = place / "tasks"
    tasks.mkdir()
    rows = [{"prompt": e.prompt, "response": e.response} for e in data.examples]
    (tasks / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = "{prompt}" if chat else wording["prompt"]
    bare = [{"function": "remove_whitespace"}, {"function": "take_first"}]
    task = {
        "task": "own_rows",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tasks / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": text.replace("{prompt}", "{{prompt}}"),
        "doc_to_target": "{{response}}",
        "generation_kwargs": {"until": ["<eos>"], "do_sample": False, "max_gen_toks": MOST},
        "filter_list": [{"name": "bare", "filter": bare}],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    (tasks / "own_rows.yaml").write_text(json.dumps(task))
    saved.export(place / "merged", format="merged", prove=logits_of)
    options = ["--apply_chat_template"] if chat else []
    subprocess.run(
        [
            *(sys.executable, "-m", "lm_eval", "--model", "hf", "--tasks", "own_rows"),
            *("--model_args", f"pretrained={place / 'merged'},dtype=float32", "--device", "cpu"),
            *(
                "--include_path",
                str(tasks),
                "--output_path",
                str(place / "out"),
                "--log_samples",
                *options,
            ),
        ],
        check=True,
        timeout=600,
    )
    (found,) = (place / "out").rglob("samples_*.jsonl")
    samples = [json.loads(line) for line in found.read_text().splitlines()]
    theirs = {sample["doc_id"]: bool(sample["exact_match"]) for sample in samples}
    print(f"{wording['template']}: {sum(ours)} of {len(ours)} right, theirs {sum(theirs.values())}")
    assert [theirs[n] for n in range(len(ours))] == ours
    assert any(ours)
