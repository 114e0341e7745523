"""Scores on any data: of a run's adapter, of the exported one, of a base model; and the command."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
import yaml

import fedmoe
from fedmoe.budget import Levels
from fedmoe.cli.main import main
from fedmoe.cli.serve import _first_screen
from fedmoe.config import Experiment
from fedmoe.data import Memory
from fedmoe.data.files import LocalFiles
from fedmoe.errors import FedMoEError
from fedmoe.evaluation.settings import EvaluationSettings
from fedmoe.export.harness import Harness, in_harness
from fedmoe.export.loaded import load
from fedmoe.export.reload import logits_of
from fedmoe.export.scored import open_source
from fedmoe.serving.app import Endpoint
from fedmoe.serving.engine import Engine
from fedmoe.serving.limits import Limits

ROWS = [{"question": f"lamp {n}", "reply": f"lamp {n % 3}"} for n in range(24)]


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_folder):
    """A finished run's folder, beside its rows, those of two owners, and the exported adapter."""
    place = tmp_path_factory.mktemp("evaluated")
    rows = write(place / "rows.jsonl", ROWS)
    (place / "owners").mkdir()
    write(place / "owners/attic.jsonl", ROWS[:10])
    write(place / "owners/barn.jsonl", [*ROWS[10:], {"question": "", "reply": "nothing"}])
    experiment = Experiment(
        name="tiny",
        rounds=1,
        model=replace(Experiment().model, path=str(tiny_folder)),
        adapter=fedmoe.LoRA(rank=2),
        data=LocalFiles(path=str(rows), prompt="question", response="reply"),
        partition={"name": "iid", "num_clients": 2},
        budget=Levels(tiers={"high": fedmoe.Tier(top_k=4), "low": fedmoe.Tier(top_k=1)}),
        training=fedmoe.Training(steps=2, batch_size=4, probe_examples=4, learning_rate=1e-2),
        evaluation=EvaluationSettings(every=0, metric=("token_f1", "exact_match", "likelihood")),
        simulation=replace(Experiment().simulation, folder=str(place / "runs")),
    )
    results = fedmoe.run(experiment)
    results.export(place / "adapter", prove=logits_of)
    results.export(place / "low", tier="low", prove=logits_of)
    return place


def test_a_runs_own_data_give_its_own_scores(folder):
    found = fedmoe.evaluate(folder / "runs/tiny")
    last = [e for e in fedmoe.open_run(folder / "runs/tiny").evaluations if e["round"] == 1]
    assert [e.tier for e in found.evaluations] == ["high", "low"]
    for mine, theirs in zip(found.evaluations, last, strict=True):
        for name in ("tier", "top_k", "loss", "score", "metric", "metrics", "examples", "by_label"):
            assert getattr(mine, name) == theirs[name], name


def logits(model):
    return model.target_logits(model.form.sample(model.model))


def test_a_loaded_run_computes_at_every_level_as_it_is_scored(folder, tiny_folder, tmp_path):
    copied = shutil.copytree(folder / "runs/tiny", tmp_path / "run")
    said = yaml.safe_load((copied / "config.yaml").read_text())
    said["budget"]["tiers"]["low"]["frozen"] = "int8"
    (copied / "config.yaml").write_text(yaml.safe_dump(said))
    loaded, source = load(copied), open_source(copied, "last", "", ())
    for name in ("low", "high", "low", "base", "high"):
        k = loaded.use(name)
        if name == "base":
            base = load(tiny_folder)
            assert base.use("base") == k == 4
            assert torch.equal(logits(loaded.model), logits(base.model))
        else:
            assert source.tiers[name]() == k
            assert torch.equal(logits(loaded.model), logits(source.model))
    loaded.use("low", 4)
    assert not torch.equal(logits(loaded.model), logits(source.model))
    with pytest.raises(FedMoEError, match="'middle' is not one of 'high', 'low', 'base'"):
        loaded.use("middle")
    low, whole = load(folder / "low", base=str(tiny_folder)), load(folder / "runs/tiny")
    assert low.use("low") == whole.use("low") == 1
    torch.testing.assert_close(logits(low.model), logits(whole.model), rtol=0, atol=1e-4)


def test_a_card_says_what_a_device_of_each_tier_downloads(folder, tiny_folder):
    facts = json.loads((folder / "low/fedmoe-export.json").read_text())
    high, low = facts["devices"]
    assert (high["top_k"], low["top_k"]) == (4, 1)
    assert low["base_bytes"] == (tiny_folder / "model.safetensors").stat().st_size
    written = (folder / "low/adapter_model.safetensors").stat().st_size
    assert 0 < written - low["adapter_bytes"] < 20_000  # the file's header
    assert low["flops_per_token"] < high["flops_per_token"]
    card = (folder / "low/README.md").read_text()
    assert "## Tiers on a device" in card
    assert "| low | 1 | 2 |" in card


def test_the_first_screen_shows_the_adapter_and_the_memory_of_what_is_served(folder, capsys):
    def screen(*form):
        loaded = load(folder / "runs/tiny", experts=form[0], offload=form[1])
        engine = Engine(loaded, Limits())
        try:
            _first_screen(Endpoint(engine), "http://here/v1", False, *form)
        finally:
            engine.close()
        return capsys.readouterr().out

    plain, small = screen(None, None), screen("int4", True)
    assert "the adapter is the last one, after round 1 of 1\n" in plain
    assert "a device of each tier, as served here" not in plain
    assert "a device of each tier, as served here" in small
    assert small.count("int4, offload") == 2
    sizes = [
        {line.split()[0]: line.split()[-4:-2] for line in text.splitlines() if " MB " in line}
        for text in (plain, small)
    ]
    assert {*sizes[0]} == {*sizes[1]} >= {"high", "low"}
    assert sizes[0] != sizes[1]
    assert "requests with tools are refused" in plain


def test_an_unfinished_run_is_answered_from_and_that_is_said(folder, tmp_path, capsys):
    run = shutil.copytree(folder / "runs/tiny", tmp_path / "cut")
    lines = (run / "ledger.jsonl").read_text().splitlines()
    header = json.loads(lines[0]) | {"num_rounds": 5}
    kept = [line for line in lines[1:] if '"kind": "end"' not in line]
    (run / "ledger.jsonl").write_text("\n".join([json.dumps(header), *kept]))
    said = "last one, after round 1 of 5; WARNING: the run is not finished: interrupted after round"
    ask = ["--max-new-tokens", "1", "lamp"]
    assert main(["generate", "--run", str(run), *ask]) == 0
    assert said in capsys.readouterr().err
    assert said in load(run).note
    assert main(["generate", "--run", str(folder / "runs/tiny"), *ask]) == 0
    assert "fedmoe: " not in capsys.readouterr().err


def test_an_exported_adapter_answers_as_the_run_at_its_tier(folder, tiny_folder, capsys):
    asked = ["--max-new-tokens", "4", "lamp 1"]
    run = ["--run", str(folder / "runs/tiny"), "--tier", "low"]
    adapter = ["--adapter", str(folder / "low"), "--base", str(tiny_folder)]
    answers = []
    for source in (run, adapter):
        assert main(["generate", *source, *asked]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != "\n"
    for wrong, said in (
        ([*run, "--adapter", "x"], "both name an adapter"),
        (["--tier", "low", *adapter], "--tier needs --run"),
        (["--base", "mini"], "--base needs --adapter"),
    ):
        assert main(["generate", *wrong, "hi"]) == 2
        assert said in capsys.readouterr().err


def test_the_exported_adapter_scores_as_the_run_does(folder, tiny_folder):
    columns = ["data.prompt=question", "data.response=reply", "evaluation.metric=likelihood"]
    run = fedmoe.evaluate(folder / "runs/tiny", folder / "rows.jsonl", columns[2:])
    base = str(tiny_folder)
    adapter = fedmoe.evaluate(folder / "adapter", folder / "rows.jsonl", columns, base=base)
    assert adapter.scores["full"] == pytest.approx(run.scores["high"], rel=1e-4)
    assert adapter.evaluations[0].examples == len(ROWS)
    low = fedmoe.evaluate(folder / "low", folder / "rows.jsonl", columns, base=base)
    assert low.evaluations[0].top_k == 1
    assert low.scores["low"] == pytest.approx(run.scores["low"], rel=1e-4)
    assert "num_experts_per_tok=1" in (folder / "low/README.md").read_text()


def test_a_base_model_scores_as_the_run_did_before_training(folder, tiny_folder):
    (first,) = [
        e
        for e in fedmoe.open_run(folder / "runs/tiny").evaluations
        if (e["round"], e["tier"]) == (0, "high")
    ]
    overrides = ["data.prompt=question", "data.response=reply", "evaluation.metric=loss"]
    found = fedmoe.evaluate(tiny_folder, folder / "rows.jsonl", overrides, split="test")
    assert found.evaluations[0].loss == pytest.approx(first["loss"], rel=1e-5)
    assert found.scores["full"] != found.scores["full"]  # NaN


def test_the_owners_of_a_folder_add_up_and_their_lost_rows_are_counted(folder):
    overrides = ["data.unusable=drop"]
    found = fedmoe.evaluate(
        folder / "runs/tiny", folder / "owners", overrides, tiers=["low"], answers=True
    )
    whole = fedmoe.evaluate(folder / "runs/tiny", folder / "rows.jsonl", tiers=["low"])
    (both,), (one,) = found.evaluations, whole.evaluations
    assert [c.name for c in both.clients] == ["attic", "barn"]
    assert both.loss == pytest.approx(one.loss)
    assert both.metrics["likelihood"] == pytest.approx(one.metrics["likelihood"], rel=1e-4)
    assert [c.examples for c in both.clients] == [10, 14]
    assert {name: counts.empty for name, counts in found.rows.items()} == {"attic": 0, "barn": 1}
    assert [a["prompt"] for a in found.answers] == [row["question"] for row in ROWS]
    assert [*found.answers[0]["scores"]] == ["token_f1", "exact_match", "likelihood"]


def test_rows_in_memory_are_data_too(folder):
    data = Memory(rows=[("lamp 1", "lamp 1"), ("lamp 2", "lamp 2")])
    found = fedmoe.evaluate(folder / "runs/tiny", data, tiers=["high"])
    assert found.evaluations[0].examples == 2
    assert found.evaluations[0].metric == "token_f1"


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        ("runs/tiny", {"tiers": ["middle"]}, "--tier 'middle' is not one of 'high', 'low'"),
        ("runs/tiny", {"data": "rows.jsonl", "overrides": ["data.promt=a"]}, "data.prompt"),
        ("runs/tiny", {"data": "none.jsonl"}, "none.jsonl: no such file"),
        ("adapter", {}, "its base, 'tiny-olmoe0', is not here; name its folder with --base"),
        ("adapter", {"data": "rows.jsonl", "base": "nowhere"}, "nowhere"),
        ("mini", {"data": "rows.jsonl", "tiers": ["low"]}, "is no run, and so has no tiers"),
        ("nothing", {"data": "rows.jsonl"}, "no such folder, and the Hugging Face Hub"),
    ],
)
def test_what_cannot_be_done_is_said(folder, monkeypatch, source, options, said):
    monkeypatch.chdir(folder)
    with pytest.raises(FedMoEError, match=said):
        fedmoe.evaluate(source, **options)


def test_the_command_prints_a_table_or_json_and_writes_answers(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    command = ["evaluate", "runs/tiny", "--data", "owners", "data.unusable=drop", "--tier", "low"]
    assert main([*command, "--metric", "token_f1", "--answers", "answers.jsonl"]) == 0
    printed, told = capsys.readouterr()
    assert "24 rows to score\nfedmoe: scoring at tier 'low' (1 of 1)" in told
    assert "barn: 14 rows, 1 of 15 rows were dropped (1 empty)" in printed
    assert "scored by token_f1" in printed
    assert all(word in printed for word in ("attic", "token f1", "loss"))
    written = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert len(written) == 24
    assert main([*command, "--metric", "loss"]) == 0
    heading = capsys.readouterr().out.split("scores\n")[-1].splitlines()[0]
    assert heading.split() == ["tier", "rows", "k", "examples", "loss"]
    assert {*written[0]} == {"tier", "rows", "prompt", "response", "answer", "scores"}
    assert main([*command, "--json"]) == 0
    (line,) = json.loads(capsys.readouterr().out)
    assert (line["tier"], line["examples"], line["metric"]) == ("low", 24, "token_f1")


HARNESS = """
import json, pathlib, sys
asked = dict(zip(sys.argv, sys.argv[1:]))
place = pathlib.Path(asked["--include_path"])
task = json.loads((place / (asked["--tasks"] + ".yaml")).read_text())
rows = pathlib.Path(task["dataset_kwargs"]["data_files"]["test"]).read_text().splitlines()
out = pathlib.Path(asked["--output_path"])
(out / "results_1.json").write_text(json.dumps({"results": {task["task"]: {
    "alias": "x", "exact_match,none": 0.5, "exact_match_stderr,none": 0.1}}}))
(out / "samples_1.jsonl").write_text("".join(
    json.dumps({"doc_id": n, "exact_match": 1.0}) + "\\n"
    for n in reversed(range(len(rows)))))
"""


def test_rows_become_a_task_of_the_harness(folder, tiny_folder, monkeypatch, tmp_path):
    """What stands for the harness here says that all answers are right; a slow test asks it."""
    (tmp_path / "lm_eval.py").write_text(HARNESS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    columns = ["data.prompt=question", "data.response=reply"]
    scores = in_harness(
        folder / "low",
        "rows",
        Harness(options="--limit 9"),
        tmp_path / "task",
        folder / "rows.jsonl",
        columns,
        base=str(tiny_folder),
    )
    assert [score.task for score in scores] == ["fedmoe_rows", "fedmoe_rows_chat"]
    for score in scores:
        assert (score.tier, score.form, score.rows) == ("low", "peft", len(ROWS))
        assert score.metrics == {"exact_match": 0.5}
        assert score.ours is not None
        assert score.equal == round(score.ours * len(ROWS))
    rows = (tmp_path / "task/fedmoe_rows.jsonl").read_text().splitlines()
    first = json.loads(rows[0])
    assert (first["prompt"], first["response"]) == ("lamp 0", "lamp 0")
    assert first["text"] != first["prompt"]
    assert "lamp 0" in first["text"]
    chat = json.loads((tmp_path / "task/fedmoe_rows_chat.yaml").read_text())
    assert (chat["doc_to_text"], chat["doc_to_target"]) == ("{{prompt}}", "{{response}}")


def test_without_the_harness_its_command_line_is_said(folder, tmp_path, capsys):
    (tmp_path / "python").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    command = ["evaluate", str(folder / "adapter"), "--harness", "arc_easy"]
    assert main([*command, "--harness-python", str(tmp_path / "python")]) == 2
    said = capsys.readouterr().err
    assert "has no lm-evaluation-harness; pip install 'lm_eval[hf]' peft" in said
    assert "python -m lm_eval --model hf --model_args pretrained=MODEL --tasks arc_easy" in said
    assert main(["evaluate", str(folder / "adapter"), "--harness-options", "x"]) == 2
    assert "need --harness" in capsys.readouterr().err
