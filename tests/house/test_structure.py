"""The shape of the code: short files and functions, a sentence at the top, nothing pickled."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("fedmoe", "clients", "server", "simulations")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MOST_FILE_LINES, MOST_FUNCTION_LINES = 350, 60
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


def test_all_packages_are_looked_at():
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(PACKAGES)


@each_file
def test_a_file_is_short_and_so_are_its_functions(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MOST_FILE_LINES
    too_long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > MOST_FUNCTION_LINES
    }
    assert not too_long


@each_file
def test_a_module_opens_with_a_sentence(path):
    doc = ast.get_docstring(ast.parse(path.read_text()))
    assert doc
    assert doc[0].isupper() or doc.partition(":")[0].isidentifier() or doc[0] == "`"


@each_file
def test_nothing_is_pickled(path):
    """Also not by torch.load, or by numpy with allow_pickle."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not PICKLES & {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            assert (node.module or "").partition(".")[0] not in PICKLES
            assert not (node.module == "torch" and names & {"load", "save"})
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in {("torch", "load"), ("torch", "save")}
        elif isinstance(node, ast.keyword):
            assert node.arg != "allow_pickle"
