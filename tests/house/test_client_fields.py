"""One place lists what a client reports: a new number touches it and where it is measured."""

import ast

from test_structure import TREES

from fedmoe.messages.records import CLIENT_FIELDS

NAMES = {field.name for field in CLIENT_FIELDS}
PLAIN_WORDS = {"examples", "steps", "tokens", "seconds"}
"""Names that other things have, too."""
TRAINED = {"fedmoe/training/client.py", "fedmoe/training/side_by_side.py"}
MADE = {"fedmoe/messages/records.py", *TRAINED}
Scope = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def named(node):
    """The fields that a scope names, without the functions and classes in it."""
    found = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Scope):
            continue
        match child:
            case ast.Attribute(attr=name) | ast.keyword(arg=name) | ast.Name(id=name):
                found |= {name}
            case ast.Constant(value=str(name)):
                found |= {name}
        found |= named(child)
    return found & NAMES


def listing(tree):
    """The scopes of a module that name so many fields that another one would have to be added."""
    for scope in (tree, *(node for node in ast.walk(tree) if isinstance(node, Scope))):
        found = named(scope)
        if len(found) > 2 and found - PLAIN_WORDS:
            yield f"{getattr(scope, 'name', 'module')}: {', '.join(sorted(found))}"


def test_nothing_else_lists_what_a_client_reports():
    found = {
        str(path): scopes
        for path, tree in TREES.items()
        if path.parts[0] != "simulations" and (scopes := [*listing(tree)])
    }
    assert found.keys() <= MADE, found


def test_a_list_is_found_where_there_is_one():
    """As there were in the ledger, the live table, the trackers, the page and the log."""
    for text in (
        'NAMES = ("tokens", "loss_before", "loss_after")',
        "class Done:\n    tokens: int\n    loss_before: float\n    loss_after: float",
        "def row(a):\n    return [a.loss_before, a.loss_after, a.tokens / a.seconds]",
        "def row(c):\n    return c['peak_bytes'], c['tokens'], c['seconds']",
        "UPDATE = dict(examples=1, peak_bytes=2, steps=3)",
    ):
        assert [*listing(ast.parse(text))], text
