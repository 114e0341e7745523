"""The shape of the code in numbers: `python tests/house/figures.py` prints them.

Names exported, modules in the package's root, the longest chain of imports, the types that a user
of `fedmoe.run` reaches, words and numbers of the README, docstrings by their first word.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("fedmoe", "clients", "server", "simulations")
OPENINGS = re.compile(r"(What|Who|How|Which|Whether|Of)\b")
NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,.]*")


def modules() -> dict[str, Path]:
    """Return every module of the four packages by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path], *, deferred: bool) -> Iterator[str]:
    """Yield the project's modules that a module imports; those of type checking alone do not count.

    With `deferred`, imports inside functions count, too.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree)) if deferred else list(_at_import(tree.body))
    typing_only = {id(n) for test in _type_checking(tree) for n in ast.walk(test)}
    for node in nodes:
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if name in known:
                    yield name
                elif node.module in known:
                    yield node.module


def _type_checking(tree: ast.Module) -> Iterator[ast.If]:
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield node


def _at_import(body: list[ast.stmt]) -> Iterator[ast.AST]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        yield node
        for child in ("body", "orelse", "finalbody"):
            yield from _at_import(getattr(node, child, []))


def longest_chain(prefix: str = "", *, deferred: bool = False) -> list[str]:
    """Return the longest chain of modules, each of which imports the next; cycles count as one."""
    known = {name: path for name, path in modules().items() if name.startswith(prefix)}
    edges = {
        name: sorted(set(imports(path, known, deferred=deferred)) - {name})
        for name, path in known.items()
    }
    group = _cycles(edges)

    @cache
    def chain(start: str) -> tuple[str, ...]:
        following = {
            target
            for member, home in group.items()
            if home == start
            for target in (group[t] for t in edges[member])
            if target != start
        }
        return (start, *max((chain(target) for target in sorted(following)), key=len, default=()))

    sys.setrecursionlimit(10_000)
    return list(max((chain(home) for home in sorted(set(group.values()))), key=len))


def _cycles(edges: dict[str, list[str]]) -> dict[str, str]:
    """Return each module's representative: modules in one cycle share it (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    home: dict[str, str] = {}

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in edges[node]:
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target not in home:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            while True:
                member = stack.pop()
                home[member] = node
                if member == node:
                    break

    sys.setrecursionlimit(10_000)
    for node in edges:
        if node not in index:
            visit(node)
    return home


def types_reached(function: typing.Any) -> set[type]:
    """Return the project's types that annotations lead to, from a function's signature on.

    Fields and public methods of each type count, transitively, as a reader would follow them.
    """
    found: set[type] = set()
    waiting = list(_types_of(function))
    while waiting:
        kind = waiting.pop()
        if kind in found or kind.__module__.partition(".")[0] not in PACKAGES:
            continue
        found.add(kind)
        waiting += _annotated(kind)
    return found


def _annotated(kind: type) -> Iterator[type]:
    for annotation in _hints(kind).values():
        yield from _classes(annotation)
    for name, member in vars(kind).items():
        member = getattr(member, "__func__", getattr(member, "fget", member))
        if not name.startswith("_") and inspect.isfunction(member):
            yield from _types_of(member)


def _types_of(function: typing.Any) -> Iterator[type]:
    for annotation in _hints(function).values():
        yield from _classes(annotation)


def _hints(holder: typing.Any) -> dict[str, typing.Any]:
    """Return annotations as types, also those whose names are imported for type checking alone."""
    names: dict[str, typing.Any] = {}
    for kind in reversed(getattr(holder, "__mro__", (holder,))):
        module = getattr(kind, "__module__", "")
        if module.partition(".")[0] in PACKAGES:
            names |= vars(sys.modules[module]) | _typing_names(module)
    try:
        return typing.get_type_hints(holder, globalns=names)
    except (NameError, TypeError, AttributeError) as error:
        print(f"warning: annotations of {holder} cannot be read: {error}", file=sys.stderr)
        return {}


@cache
def _typing_names(module: str) -> dict[str, typing.Any]:
    """Return what a module of ours imports for type checking alone."""
    path = modules().get(module)
    found: dict[str, typing.Any] = {}
    for block in _type_checking(ast.parse(path.read_text(encoding="utf-8"))) if path else ():
        for node in block.body:
            if isinstance(node, ast.ImportFrom) and node.module:
                home = importlib.import_module(node.module)
                found |= {a.asname or a.name: getattr(home, a.name) for a in node.names}
    return found


def _classes(annotation: typing.Any) -> Iterator[type]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        yield annotation
    for part in typing.get_args(annotation):
        if isinstance(part, list):
            for inner in part:
                yield from _classes(inner)
        else:
            yield from _classes(part)


def readme() -> tuple[int, float]:
    """Return the README's words, and its numbers per 100 words of prose."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```", " ", text, flags=re.DOTALL)
    prose = re.sub(r"^\|.*$", " ", prose, flags=re.MULTILINE)  # tables
    prose = re.sub(r"\]\([^)]*\)|`[^`]*`|https?://\S+", " ", prose)
    words = [word for word in prose.split() if re.search(r"\w", word)]
    numbers = len(NUMBER.findall(prose))
    return len(text.split()), 100 * numbers / max(1, len(words))


def docstrings() -> tuple[int, list[str]]:
    """Return how many docstrings there are, and where one opens with What, Who, How, ... or Of."""
    count, odd = 0, []
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            if isinstance(node, kinds) and (text := ast.get_docstring(node)):
                count += 1
                if OPENINGS.match(text):
                    odd.append(f"{name}: {text.splitlines()[0]}")
    return count, odd


def lines() -> int:
    """Return the lines of source in the four packages."""
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in modules().values())


def root_modules() -> list[str]:
    """Return the modules directly in the package's root."""
    return sorted(p.stem for p in (ROOT / "fedmoe").glob("*.py") if p.stem != "__init__")


def main() -> None:
    """Print all figures."""
    fedmoe = importlib.import_module("fedmoe")
    chain = longest_chain()
    reached = types_reached(fedmoe.run)
    words, numbers = readme()
    count, odd = docstrings()
    print(f"names exported by `import fedmoe`: {len(fedmoe.__all__)}")
    print(f"modules in the root of fedmoe: {len(root_modules())} ({', '.join(root_modules())})")
    print(f"longest import chain: {len(chain)} ({' > '.join(chain)})")
    print(f"longest chain inside fedmoe: {len(longest_chain('fedmoe'))}")
    print(f"with deferred imports: {len(longest_chain(deferred=True))}")
    print(f"types reached from fedmoe.run: {len(reached)}")
    print("  " + ", ".join(sorted(f"{t.__module__}.{t.__qualname__}" for t in reached)))
    print(f"README: {words} words, {numbers:.1f} numbers per 100 words")
    print(f"docstrings that open with What/Who/How/Of: {len(odd)} of {count}")
    print(f"lines of source: {lines():,} in {len(modules())} files")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
