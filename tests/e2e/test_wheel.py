"""The wheel, installed with its core dependencies alone, in a folder with strangers' packages."""

import json
import re
import tomllib
import zipfile
from pathlib import Path

import pytest

pytest.importorskip(
    "hatchling", reason="NOT BUILT: hatchling is not installed; `pip install hatchling`"
)

from bare import ROOT, build_wheel, environment, run

from fedmoe.export.card import licence_of
from fedmoe.models.folder import model_folder
from fedmoe.system.digests import code_digest

STRANGE = "raise AssertionError('a stranger was imported')\n"
ROWS = [{"instruction": f"say {i}", "output": str(i)} for i in range(120)]
SMALL = ["rounds=1", "training.steps=1", "partition.num_clients=2", "clients_per_round=1"]
SMALL += ["evaluation.test_examples=2", "evaluation.validation_examples=2"]
SMALL += ["evaluation.max_new_tokens=2"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The interpreter of an environment that has the wheel and the core dependencies."""
    core = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return environment(tmp_path_factory.mktemp("bare") / "venv", wheel, core)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with rows, and packages of a stranger that are called as ours are."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("clients", "server", "simulations", "configs"):
        (folder / name).mkdir()
        for file in ("__init__.py", "app.py", "about.py"):
            (folder / name / file).write_text(STRANGE)
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return folder


@pytest.fixture(scope="module")
def fedmoe(python, place):
    """The command, given the stranger's folder ahead of everything installed."""

    def call(*words, code=0):
        done = run(python.with_name("fedmoe"), *words, cwd=place, path=[place])
        assert done.returncode == code, (words, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done.stdout if code == 0 else done.stderr

    return call


def test_the_wheel_installs_one_package_and_its_files(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"fedmoe"}
    for name in ("clients/app.py", "server/app.py", "pyproject.toml", "configs/devices/phone.yaml"):
        assert f"fedmoe/bundle/{name}" in names


def test_the_wheel_names_the_licences_of_code_and_weights(wheel):
    files = zipfile.ZipFile(wheel)
    about = next(name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
    said = re.search(r"^License-Expression: (.*)$", files.read(about).decode(), re.MULTILINE)
    of_weights = licence_of(Path(model_folder("mini")))
    assert said[1].split(" AND ") == ["Apache-2.0", of_weights.upper()]
    assert f"{Path(about).parent}/licenses/fedmoe/models/mini/README.md" in files.namelist()


def test_the_environment_has_no_extras(python, place):
    extras = ("matplotlib", "scipy", "hassil", "home_assistant_intents", "ray", "gguf")
    code = f"import importlib.util as u; print([n for n in {extras} if u.find_spec(n)])"
    assert run(python, "-c", code, cwd=place).stdout == "[]\n"


def test_a_node_from_the_wheel_runs_the_code_of_a_checkout(python, place):
    code = "from fedmoe.system.digests import code_digest; print(code_digest())"
    assert run(python, "-c", code, cwd=place).stdout.strip() == code_digest()


@pytest.fixture(scope="module")
def said(python, place):
    """What words print beside a stranger's packages, in one fresh process: each takes seconds."""
    words = ["--help", "configs", "configs quickstart", "schema", "models mixtral"]
    words += ["completion bash"]
    words += ["deploy init fleet --server 127.0.0.1:8000 --clients a=high,b=low --config own_rows"]
    code = (
        "import sys; from fedmoe.cli.main import main\n"
        "for words in sys.argv[1:]: assert main(words.split()) == 0; print(chr(0), end='')"
    )
    done = run(python, "-c", code, *words, cwd=place, path=[place])
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\0")


def test_commands_work_beside_strangers_packages(fedmoe, python, place, said):
    assert fedmoe("--version").startswith("fedmoe ")
    module = run(python, "-m", "fedmoe.cli.main", "--version", cwd=place, path=[place])
    assert module.stdout.startswith("fedmoe ")
    help, configs, quickstart, schema, models, completion, *_ = said
    assert "completion" in help
    assert "quickstart" in configs
    assert quickstart == (ROOT / "configs/quickstart.yaml").read_text()
    assert "properties" in json.loads(schema)
    assert "mixtral" in models
    assert "complete" in completion


@pytest.mark.usefixtures("said")
def test_nothing_of_a_stranger_enters_a_deployment(place):
    app = place / "fleet/server/app"
    for root in ("clients", "server"):
        ours = {p.relative_to(ROOT): p.read_bytes() for p in (ROOT / root).rglob("*.py")}
        made = {p.relative_to(app): p.read_bytes() for p in (app / root).rglob("*.py")}
        assert made == ours


@pytest.mark.slow
def test_own_rows_are_trained_on_and_what_is_missing_is_said(fedmoe, place):
    fedmoe("init", "mine", "--data", "rows.jsonl")
    assert "medium" in fedmoe("check", "mine/config.yaml")
    shown = fedmoe("run", "mine/config.yaml", *SMALL, "--quiet")
    assert shown.strip() == "runs/mine/summary.md"
    assert "# mine" in (place / shown.strip()).read_text()
    assert not (place / "runs/mine/report.html").exists()
    # The run's own folder, read again: status needs no more than the core.
    assert "mine" in fedmoe("status", "runs/mine")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (["check", "quickstart"], "home"),
        (["check", "reasoning"], "reasoning"),
        (["compare", "compare_quick"], "report"),
        (["upcycle", "upcycle_smollm2"], "base-models"),
        (["pretrain", "pretrain_mini"], "base-models"),
    ],
)
def test_an_extra_that_is_not_installed_is_named(fedmoe, words, extra):
    assert re.search(
        rf"^fedmoe: error: .* needs .* not installed; run: pip install 'fedmoe\[{extra}\]'$",
        fedmoe(*words, code=2),
        re.MULTILINE,
    )


@pytest.mark.slow
def test_a_run_without_plots_says_so(python, place):
    words = ("run", "mine/config.yaml", *SMALL, "name=again")
    done = run(python.with_name("fedmoe"), *words, cwd=place, path=[place])
    assert done.returncode == 0, done.stderr
    said = "fedmoe: warning: matplotlib is not installed: no report.html and no plots were written"
    assert f"{said}; run: pip install 'fedmoe[report]'" in done.stderr


@pytest.mark.slow
def test_the_readmes_python_runs(python, tmp_path):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    done = run(python, "-c", block, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(tmp_path / "my-adapter").is_dir()
