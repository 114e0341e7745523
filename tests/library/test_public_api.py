"""The public names: few, lazy, documented, and with examples that run."""

import doctest
import importlib
import inspect
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

import fedmoe
from fedmoe.training.settings import Training

ROOT = Path(__file__).parents[2]
EXAMPLES = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL


def test_there_are_at_most_16_names_and_each_has_a_docstring():
    assert len(fedmoe.__all__) <= 16
    for name in fedmoe.__all__:
        assert inspect.getdoc(getattr(fedmoe, name)), name


def test_a_name_that_there_is_not_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Federatoin'"):
        fedmoe.Federatoin  # noqa: B018


def test_importing_it_costs_no_torch():
    code = "import sys, fedmoe; dir(fedmoe); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_packages_are_reached_by_their_names():
    for name in ("aggregation", "data", "evaluation", "export"):
        assert getattr(fedmoe, name) is importlib.import_module(f"fedmoe.{name}")


@pytest.mark.usefixtures("proved_here")
def test_the_readmes_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fedmoe.federation.Training", partial(Training, steps=2))
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len([line for line in block.splitlines() if line.strip()]) <= 12
    exec(compile(block, "README.md", "exec"), {})
    rounds = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert rounds == ["1", "2", "3"]
    assert (tmp_path / "my-adapter" / "adapter_config.json").is_file()


def examples():
    """Every docstring example of the package, by its place."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for path in sorted((ROOT / "fedmoe").rglob("*.py")):
        if ">>>" not in path.read_text(encoding="utf-8"):
            continue
        parts = path.relative_to(ROOT).with_suffix("").parts
        module = importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
        yield from (test for test in finder.find(module) if test.examples)


@pytest.mark.parametrize("example", [*examples()], ids=lambda example: example.name)
def test_docstring_examples_run(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed, _ = doctest.DocTestRunner(optionflags=EXAMPLES, verbose=False).run(example)
    assert not failed


def test_every_public_class_and_function_shows_an_example():
    shown = {example.name.rpartition(".")[2] for example in examples()}
    homes = {getattr(fedmoe, name).__name__ for name in fedmoe.__all__}
    assert homes - shown == set()
