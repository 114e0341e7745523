"""Components constrain themselves: no other file names a strategy, by word or by class."""

import ast
import re
from pathlib import Path

import pytest

from fedmoe.aggregation import STRATEGIES

ROOT = Path(__file__).parents[2]
NAMES = {kind().name: kind for kind in STRATEGIES}
CLASSES = {kind.__name__ for kind in STRATEGIES}
WORDS = re.compile(rf"\b({'|'.join(NAMES)})\b")
MAY_NAME = {
    "fedmoe/aggregation/__init__.py": "the union",
    "fedmoe/config/schema.py": "the default of an experiment",
    "fedmoe/comparison/baselines.py": "what a comparison is read against",
    "fedmoe/__init__.py": "public names",
    "fedmoe/federation.py": "the default of a federation",
    "fedmoe/data/shown.py": "the median of lengths",
    "fedmoe/cli/": "examples in help texts",
}
FILES = [p for top in ("fedmoe", "clients", "server") for p in sorted((ROOT / top).rglob("*.py"))]


def named(tree):
    """The strategies that code names, with lines; docstrings may speak of any."""
    docs = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if id(node) not in docs:
                found = set(WORDS.findall(text))
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                found = {name} & CLASSES
            case _:
                continue
        for name in found:
            yield node.lineno, name


def own_file(path, name):
    """Return whether the strategy is defined in this file, or derives from one that is."""
    kind = NAMES.get(name) or next(k for k in STRATEGIES if k.__name__ == name)
    modules = {base.__module__ for base in (kind, *STRATEGIES) if issubclass(base, kind)}
    return ".".join(path.relative_to(ROOT).with_suffix("").parts) in modules


def test_no_file_but_its_own_names_a_strategy():
    faults = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in FILES
        if not str(path.relative_to(ROOT)).startswith((*MAY_NAME,))
        for line, name in named(ast.parse(path.read_text(encoding="utf-8")))
        if not own_file(path, name)
    ]
    assert faults == []


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("if strategy.name == 'ub_smoe': ...", "ub_smoe"),
        ("from fedmoe.aggregation import FedBuff", "FedBuff"),
        ("isinstance(x, aggregation.FedBuff)", "FedBuff"),
        ("raise ValueError(f'{x} and fedbuff do not go together')", "fedbuff"),
    ],
)
def test_a_name_in_code_is_found(code, name):
    assert [found for _, found in named(ast.parse(code))] == [name]


def test_docstrings_may_speak_of_strategies():
    assert not [*named(ast.parse('def f():\n    """As in fedbuff."""'))]
