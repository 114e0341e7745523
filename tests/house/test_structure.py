"""The shape of the code: short files and functions, a sentence at the top, nothing pickled."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("fedmoe", "clients", "server", "simulations")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TREES = {path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
MOST_FILE_LINES, MOST_FUNCTION_LINES = 350, 60
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}


def test_every_package_is_looked_at():
    assert {path.parts[0] for path in TREES} == set(PACKAGES)


def test_files_are_short():
    sizes = {
        str(path): len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in TREES
    }
    assert {path: size for path, size in sizes.items() if size > MOST_FILE_LINES} == {}


def test_functions_fit_a_screen_and_a_half():
    sizes = {
        f"{path}:{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: size for name, size in sizes.items() if size > MOST_FUNCTION_LINES} == {}


def test_every_module_opens_with_a_docstring():
    assert [str(path) for path, tree in TREES.items() if not ast.get_docstring(tree)] == []


def test_nothing_is_pickled():
    """Also not by torch.load, or by numpy where allow_pickle is not plainly False."""
    assert [f"{path}:{line}" for path, tree in TREES.items() for line in pickling(tree)] == []


def pickling(tree):
    """The lines of a module that could unpickle something."""
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                bad = bool(PICKLES & {alias.name.partition(".")[0] for alias in node.names})
            case ast.ImportFrom(module=str(module)):
                from_torch = module == "torch" and any(a.name == "load" for a in node.names)
                bad = module.partition(".")[0] in PICKLES or from_torch
            case ast.Attribute(value=ast.Name(id="torch"), attr="load"):
                bad = True
            case ast.keyword(arg="allow_pickle", value=value):
                bad = not (isinstance(value, ast.Constant) and value.value is False)
            case _:
                continue
        if bad:
            yield node.lineno
