"""A table of every family's contract, from a real run: `python tests/support/family_table.py XML`.

The run is pytest's with `--junitxml XML`; no outcome is written down here.
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from fedmoe.models.families import FAMILIES, Family, refused_families

COLUMNS: Mapping[str, Sequence[str]] = {
    "is the original": [
        "test_without_an_adapter_at_full_budget_it_is_the_original",
        "test_without_an_adapter_at_full_budget_it_is_the_original_row_by_row",
    ],
    "k below K": [
        "test_a_smaller_k_is_the_original_with_that_k",
        "test_every_k_is_computed_and_counted_exactly",
    ],
    "counts": [
        "test_a_smaller_k_changes_what_is_computed_and_is_counted_exactly",
        "test_every_k_is_computed_and_counted_exactly",
    ],
    "padding": [
        "test_padding_changes_no_bit_of_loss_counts_and_gradients",
        "test_answers_in_a_batch_are_the_answers_alone",
        "test_padding_changes_no_bit_and_other_rows_no_loss",
        "test_answers_in_a_batch_are_the_answers_alone_and_the_likeliest",
    ],
    "gradients": [
        "test_every_factor_is_reached_and_an_expert_without_tokens_is_not",
        "test_logits_and_every_gradient_match_pefts_and_no_other_weight_has_one",
        "test_no_other_weight_has_a_gradient_and_an_expert_without_tokens_has_none",
        "test_logits_and_every_gradient_match_pefts",
    ],
    "PEFT and back": [
        "test_an_export_is_loaded_and_merged_by_peft",
        "test_an_export_is_loaded_merged_and_saved_again",
        "test_trained_routers_go_to_peft_and_merge",
        "test_trained_routers_go_to_peft",
    ],
    "two rounds": [
        "test_a_federated_run_of_two_rounds_lowers_the_loss",
        "test_a_federated_run_of_two_rounds_lowers_the_loss_and_is_scored",
    ],
    "memory": ["test_what_a_family_keeps_is_told_within_a_tenth"],
    "router": [
        "test_the_familys_file_says_how_its_router_weighs",
        "test_parameters_per_k_and_the_routers_rule_are_those_of_the_file",
    ],
    "sizes": [
        "test_published_sizes_are_counted_from_their_configs_alone",
        "test_parameters_per_k_are_those_of_its_tensors",
        "test_parameters_per_k_and_the_routers_rule_are_those_of_the_file",
    ],
}
"""Each promise, and the tests that show it."""
EXPLAINED = """\
- *is the original*: without an adapter at k = K outputs are within 2e-6 of transformers' model, and
  bitwise identical on its own experts; *k below K*: the original with that k; *counts*: exact for
  three k
- *padding*: changes no bit of loss, counts, gradients; answers in a batch are those given alone
- *gradients*: every factor's is PEFT's; experts without tokens and frozen weights have none;
  *PEFT and back*: PEFT loads and merges the export to the same logits, also with trained routers
- *two rounds*: a federated run of two rounds lowers every client's loss; *memory*: what backward
  keeps is predicted within a tenth; *router*: weighs as the family's file says; *sizes*: parameters
  per k are those of the tensors, and those that makers state for published models
"""
OPENING = """\
# Families and their contract

Each cell is the outcome of tests on a tiny random model of that family. To make this page:

```sh
pytest -m 'slow or not slow' tests/contracts/test_famil*.py tests/contracts/test_task_*.py \\
  tests/oracles/test_saved.py --junitxml families.xml
python tests/support/family_table.py families.xml > fedmoe/models/families/families.md
```

{tests} tests, {failed} failed; {used}, on a CPU.

{explained}"""


def outcomes(reports: Sequence[Path]) -> dict[tuple[str, str], str]:
    """Return each outcome by test and family: passed, FAILED, or why it was skipped."""
    found = {}
    for case in (case for path in reports for case in ET.parse(path).getroot().iter("testcase")):
        test, _, kind = case.get("name", "").rstrip("]").partition("[")
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            found[test, kind] = "FAILED"
        elif skipped is not None:
            found[test, kind] = skipped.get("message", "skipped")
        else:
            found[test, kind] = "passed"
    return found


def cell(family: Family, tests: Sequence[str], found: Mapping[tuple[str, str], str]) -> str:
    """Return the outcome of one column's tests."""
    came = [found[test, family.model_type] for test in tests if (test, family.model_type) in found]
    if "FAILED" in came:
        return "FAILED"
    if other := [said for said in came if said != "passed"]:
        return other[0]
    if came:
        return "passed"
    peft = any("merged_by_peft" in test for test in tests)
    return f"refused: {family.no_peft}" if peft and family.no_peft else "not run"


def table(found: Mapping[tuple[str, str], str]) -> list[str]:
    """Return the families' rows; a long outcome goes below, under a number."""
    notes: list[str] = []
    lines = [
        f"| family | `model_type` | {' | '.join(COLUMNS)} |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    for family in FAMILIES.values():
        cells = []
        for tests in COLUMNS.values():
            said = cell(family, tests, found)
            if said not in ("passed", "FAILED", "not run"):
                if said not in notes:
                    notes.append(said)
                word = "refused" if said.startswith("refused") else "skipped"
                said = f"{word} [{notes.index(said) + 1}]"
            cells.append(said)
        lines.append(f"| {family.name} | `{family.model_type}` | {' | '.join(cells)} |")
    said = [f"{i}. {re.sub('^refused: ', '', note)}" for i, note in enumerate(notes, 1)]
    return [*lines, *([""] if said else []), *said]


def main(reports: Sequence[Path]) -> None:
    """Print the page."""
    found = outcomes(reports)
    names = {test for tests in COLUMNS.values() for test in tests}
    runs = [said for (test, kind), said in found.items() if test in names and kind in FAMILIES]
    used = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    counts = {"tests": len(runs), "failed": runs.count("FAILED")}
    print(OPENING.format(**counts, used=used, explained=EXPLAINED))
    print("\n".join(table(found)))
    print("\n## Refused\n\n| family | `model_type` | why |\n|---|---|---|")
    for refused in refused_families():
        kind = f"`{refused.model_type}`" if refused.model_type else "none"
        print(f"| {refused.name} | {kind} | {refused.reason} |")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
