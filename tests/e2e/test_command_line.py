"""The command line itself: help, arguments, completion, shipped configs, and a new config."""

import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml
from shapes import FULL_TOP_K

from fedmoe.cli.main import COMMANDS, fedmoe, main
from fedmoe.config import load_experiment
from fedmoe.system.shipped import shipped_configs, shipped_folder

MOST_SECONDS = 0.5
"""Seconds of a processor, to print the help."""
CONFIGS = shipped_configs()
TAKES = re.compile(r"^# Takes .*(minute|hour)", re.MULTILINE)


def commands(group=fedmoe, path=("fedmoe",)):
    """Every command with its words, those of groups included."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


EVERY = dict(commands())


def test_help_is_printed_without_torch_in_half_a_second():
    code = "import sys; from fedmoe.cli.main import main; main(['--help'])"
    code += "; print('torch' in sys.modules)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.endswith("False\n"), done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < MOST_SECONDS


def test_the_help_lists_every_command_in_order_with_whole_sentences(capsys):
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == [*COMMANDS]
    assert all(line.endswith(".") and "..." not in line for line in listed)


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_a_commands_help_has_examples_that_it_can_parse(words, capsys):
    assert main([*words[1:], "--help"]) == 0
    text = capsys.readouterr().out.partition("Examples:\n")[2].partition("\n\n")[0]
    examples = [
        re.sub(r"(^.*<\()|(\).*$)|( {2,}\(.*$)|( > .*$)", "", line).strip()
        for line in text.replace("\\\n", "").splitlines()
    ]
    assert examples
    for example in examples:
        given = shlex.split(example)
        assert tuple(given[: len(words)]) == words
        EVERY[words].make_context(words[-1], given[len(words) :])


def test_options_and_settings_may_stand_in_any_order(capsys):
    words = ["run.yaml", "rounds=3", "--quiet", "seed=-1", "--resume", "auto", "data.name=x"]
    found = EVERY["fedmoe", "run"].make_context("run", words).params
    assert found["overrides"] == ("rounds=3", "seed=-1", "data.name=x")
    assert (found["quiet"], found["resume"], found["config"]) == (True, "auto", Path("run.yaml"))
    for wrong, said in (
        (["run", "quickstart", "--nosuch=1", "a=b"], "No such option '--nosuch'"),
        (["export", "run", "out", "a=b"], "unexpected extra argument (a=b)"),
        (["run"], "Missing argument 'CONFIG'"),
        (["run", "quickstart", "--resume", "yes"], "'yes' is not one of"),
        (["chek"], "'check'"),
        (["check", "quickstart", "--", "seed"], "seed: not an override; expected key=value"),
    ):
        assert main(wrong) == 2
        assert said in capsys.readouterr().err


def test_an_argument_that_is_missing_is_explained(capsys):
    assert main(["run"]) == 2
    said = "Missing argument 'CONFIG'.\nA YAML file, or the name of a shipped one"
    assert said in capsys.readouterr().err


def test_the_version_is_the_installed_packages(capsys):
    from importlib.metadata import version

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fedmoe {version('fedmoe')}\n"


@pytest.fixture
def installed(tmp_path):
    """The environment of a shell that finds the command `fedmoe`."""
    script = tmp_path / "bin" / "fedmoe"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m fedmoe.cli.main "$@"\n')
    script.chmod(0o755)
    return os.environ | {"PATH": f"{script.parent}{os.pathsep}{os.environ['PATH']}"}


COMPLETED = [
    (["fedmoe", "ex"], {"explain", "export"}),
    (["fedmoe", "deploy", ""], {"init"}),
    (["fedmoe", "run", "quick"], {"quickstart"}),
    (["fedmoe", "run", "quickstart", "--re"], {"--resume"}),
    (["fedmoe", "run", "quickstart", "--resume", "a"], {"auto", "anyway"}),
]


def test_bash_completes_with_the_printed_script(installed, tmp_path):
    """In one shell, as a person has it."""
    parts = ["source <(fedmoe completion bash)", "compopt() { :; }"]  # works while a person types
    for words, _ in COMPLETED:
        parts += ["COMPREPLY=()", f"COMP_WORDS=({shlex.join(words)})"]
        parts += [f"COMP_CWORD={len(words) - 1}"]
        parts += ["_fedmoe_completion fedmoe", 'printf "%s\\n" "${COMPREPLY[@]}" "|"']
    done = subprocess.run(
        ["bash", "-c", "; ".join(parts)],
        env=installed,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    found = [{*part.split()} for part in done.stdout.split("|")[:-1]]
    assert found == [expected for _, expected in COMPLETED], done.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_understand_their_script(shell, tmp_path, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"_FEDMOE_COMPLETE={shell}_complete" in script
    if shutil.which(shell) is None:
        pytest.skip(f"NOT PARSED: there is no {shell} here")
    (tmp_path / "script").write_text(script)
    assert subprocess.run([shell, "-n", tmp_path / "script"], timeout=60).returncode == 0


def test_shipped_configs_are_listed_with_what_they_show_and_take(capsys):
    assert main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[: 2 * len(CONFIGS) : 2]] == [*CONFIGS]
    assert all("Takes " in line for line in lines[1 : 2 * len(CONFIGS) : 2])
    assert "phone" in lines[-1]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_opens_with_what_it_shows_its_command_and_its_minutes(name):
    text = CONFIGS[name].read_text()
    first = text.splitlines()[0]
    assert first.startswith("# ")
    assert first.endswith((".", "?"))
    assert f"configs/{name}.yaml" in text
    assert TAKES.search(text), "what it takes"


def test_a_printed_config_is_the_shipped_one_and_keeps_its_devices(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["configs", "fleet_virtual"]) == 0
    Path("my.yaml").write_text(capsys.readouterr().out)
    assert (
        load_experiment("my.yaml")
        == load_experiment("fleet_virtual")
        != load_experiment("quickstart")
    )
    # A file of the same name beside the config comes first.
    Path("devices").mkdir()
    assert main(["configs", "devices/phone"]) == 0
    mine = yaml.safe_load(capsys.readouterr().out) | {"label": "mine"}
    Path("devices/phone.yaml").write_text(yaml.safe_dump(mine))
    assert load_experiment("my.yaml").devices["lowest"].label == "mine"
    assert load_experiment("fleet_virtual").devices["lowest"].label != "mine"


def test_a_name_that_is_no_config_is_told_from_a_file(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["check", "quickstrat"]) == 2
    assert "no shipped config of this name; did you mean quickstart?" in capsys.readouterr().err
    assert main(["check", "quickstart.yaml"]) == 2
    assert "quickstart.yaml: 1 fault(s)\n  no such file\n" in capsys.readouterr().err
    Path("quickstart").write_text("name: mine\n")
    assert load_experiment("quickstart").name == "mine"


def test_a_new_config_is_checked_and_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "my run"]) == 0
    following = capsys.readouterr().out.splitlines()[1:]
    commands = [shlex.split(line.partition(": ")[2])[1:] for line in following]
    assert [words[0] for words in commands] == ["check", "run"]
    small = [
        "rounds=1",
        "training.steps=1",
        "training.batch_size=2",
        "training.probe_examples=2",
        "evaluation.test_examples=2",
        "evaluation.max_new_tokens=2",
    ]
    assert main([*commands[0], *small]) == 0
    assert "medium" in capsys.readouterr().out
    assert main([*commands[1], *small, "evaluation.validation_examples=2", "--quiet"]) == 0
    assert (tmp_path / "runs/my-run/report.html").exists()


def test_a_new_config_names_own_rows_and_explains_every_setting(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("question,answer\nhello,world\n")
    words = ["--data", "rows.csv", "--clients", "7", "--name", "mine"]
    assert main(["init", "new/folder", *words]) == 0
    made = load_experiment("new/folder/config.yaml")
    assert (made.name, made.partition.num_clients) == ("mine", 7)
    assert made.data.path == str(tmp_path / "rows.csv")
    assert [tier.top_k for tier in made.budget.tiers.values()] == [FULL_TOP_K, FULL_TOP_K // 2, 1]
    assert not Path("new/folder/rows.jsonl").exists()
    for line in Path("new/folder/config.yaml").read_text().splitlines():
        key, _, value = line.partition(": ")
        if (
            value
            and not line.startswith("#")
            and not key.endswith(("path", "high", "medium", "low"))
        ):
            assert "# " in line, line
    assert main(["init", "hub", "--data", "databricks/databricks-dolly-15k"]) == 0
    assert load_experiment("hub/config.yaml").data.name == "hub"


def test_a_new_config_for_a_folder_has_a_client_for_each_file(tmp_path, capsys):
    rows = tmp_path / "rows"
    assert main(["init", str(tmp_path / "no"), "--data", str(tmp_path)]) == 2
    rows.mkdir()
    for name in ("a", "b"):
        (rows / f"{name}.csv").write_text("question,answer\nhello,world\n")
    assert main(["init", str(tmp_path / "no"), "--data", str(rows), "--clients", "4"]) == 2
    assert "each of the 2 files" in capsys.readouterr().err
    assert main(["init", str(tmp_path / "new"), "--data", str(rows)]) == 0
    made = load_experiment(tmp_path / "new/config.yaml")
    assert (made.data.name, made.data.path) == ("federated", str(rows))
    assert (made.budget.default, list(made.budget.tiers)) == ("high", ["high"])
    assert "partition:" not in (tmp_path / "new/config.yaml").read_text()
    capsys.readouterr()
    assert main(["init", str(tmp_path / "no"), "--data", str(tmp_path / "row")]) == 2
    assert "did you mean rows?" in capsys.readouterr().err


def test_a_new_config_overwrites_nothing(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["init", str(tmp_path)]) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert main(["init", str(tmp_path / "notes.txt")]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_new_config_for_a_folders_model_has_its_tiers(tmp_path, tiny_folder, capsys):
    assert main(["init", str(tmp_path / "new"), "--model", str(tiny_folder)]) == 0
    model = json.loads((tiny_folder / "config.json").read_text())
    made = load_experiment(tmp_path / "new/config.yaml")
    assert max(t.top_k for t in made.budget.tiers.values()) == model["num_experts_per_tok"]
    assert main(["init", str(tmp_path / "other"), "--model", str(tmp_path / "nowhere")]) == 2
    assert not (tmp_path / "other").exists()


def test_the_shipped_files_are_those_of_the_checkout():
    assert {path.name for path in shipped_folder().iterdir()} >= {"clients", "server", "configs"}
