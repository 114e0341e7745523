"""The model card of an export: where it comes from, its scores, how it is served, its limits."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmoe.export.devices import COLUMNS, table_rows
from fedmoe.export.formats import WHOLE
from fedmoe.models.folder import MINI
from fedmoe.report.run import Run, read_run
from fedmoe.report.run_tables import wilson_interval
from fedmoe.report.units import count_text, percent_text

FENCE = "```"
LIBRARY = {"merged": {"library_name": "transformers"}, "gguf": {}, "gguf-lora": {}}
"""By form: the library of the Hub's page; PEFT for other forms."""
DATA = {
    "federated": "their own files, which never left them",
    "memory": "rows that were given to the program in memory",
    "files": "one file of rows, divided among them",
}
"""By the name of a data set, where that says nothing to others."""


def licence_of(base: Path) -> str:
    """Return the licence in the card of a base model; empty where it says none."""
    card = base / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    found = re.search(r"\A---\n(?:.*\n)*?license:[ \t]*(\S+)[ \t]*\n(?:.*\n)*?---\n", text)
    return found[1] if found else ""


def card(facts: Mapping[str, Any], licence: str, run: Path | None) -> str:
    """Return the card as Markdown.

    Args:
        facts: what stands in `fedmoe-export.json`.
        licence: of the base model; empty if it is not known.
        run: the folder of the run, for its scores and owners; None where there is none.
    """
    merged, base = facts["writes"] in WHOLE, _base(facts["base"])
    kind = f"{base} with a LoRA adapter of its experts merged in"
    if not merged:
        kind = f"A LoRA adapter of every expert for {base}"
    head = {"tags": ["moe", "lora", "federated-learning", "fedmoe"]}
    # The Hub looks for a base by its name, and the built-in one is not there.
    head |= {"base_model": facts["base"]} if facts["base"] != MINI else {}
    head |= {"license": licence} if licence else {}
    head |= LIBRARY.get(facts["writes"], {"library_name": "peft"})
    known = read_run(run) if run is not None and (run / "ledger.jsonl").is_file() else None
    parts = [
        "---\n" + "".join(f"{k}: {json.dumps(v)}\n" for k, v in head.items()) + "---",
        f"# {facts['name']}\n\n{kind}, trained by federated learning with fedmoe: a text-in, "
        "text-out model that learnt from several owners' rows without collecting them.",
        *(_run_parts(known, facts) if known else []),
        "## Prompts\n\n" + _prompts(facts),
        "## Use\n\n" + _use(facts),
        *(_devices(facts) if facts["devices"] and not merged else []),
        "## Proof\n\n" + _proof(facts),
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in _limits(facts, licence)),
    ]
    return "\n\n".join(parts) + "\n"


def _base(name: str) -> str:
    """Return a base's name as a stranger understands it."""
    if name == MINI:
        return "the small model that the Python package `fedmoe` brings along (`mini`)"
    return f"`{name}`" if "/" in name else f"`{name}` (a folder of whoever trained it)"


def _run_parts(run: Run, facts: Mapping[str, Any]) -> list[str]:
    head, done = run.header, run.ok()
    rows = {line["client"]: line["examples"] for line in done}
    data = DATA.get(facts["data"], f"the data set `{facts['data']}`, divided among them")
    text = (
        f"{len(rows)} of {head['num_clients']} owners trained, on {_between([*rows.values()])} "
        f"rows each, {count_text(sum(rows.values()))} in all: {data}. "
        f"{run.num_finished} of {head['num_rounds']} rounds, {head['clients_per_round']} owners a "
        f"round, {count_text(sum(c['tokens'] for c in done))} tokens. Their updates were averaged "
        f"by fedmoe's strategy `{head['strategy']}`."
    )
    tiers = [
        [
            f"**{tier.name}**" if tier.name == facts["tier"] else tier.name,
            str(tier.top_k),
            count_text(len(tier.clients)),
            *_scores(run, tier.name),
        ]
        for tier in run.tiers
    ]
    header = ["tier", "experts a token", "owners", "rows scored", f"{run.score_name} before"]
    header += ["after", "95 % interval", "loss"]
    said = "A tier is a budget: how many experts a token may activate on an owner's machine."
    said += " In bold: this export's." if facts["tier"] else ""
    return ["## Training\n\n" + text, f"## Scores\n\n{said}\n\n" + _table(header, tiers)]


def _between(numbers: Sequence[int]) -> str:
    low, high = (count_text(bound(numbers, default=0)) for bound in (min, max))
    return low if low == high else f"{low} to {high}"


def _scores(run: Run, tier: str) -> list[str]:
    curve = run.curve("test", tier) or run.curve("validation", tier)
    if not curve:
        return ["–"] * 5
    first, last = curve[0], curve[-1]
    rows = count_text(last["examples"])
    if last["score"] is None:  # scored by the loss alone
        return [rows, *["–"] * 3, f"{last['loss']:.3f}"]
    low, high = wilson_interval(last["score"], last["examples"])
    before = percent_text(first["score"]) if first["round"] == 0 else "–"
    between = f"{100 * low:.1f} to {100 * high:.1f}" if run.is_share else "–"
    return [rows, before, percent_text(last["score"]), between, f"{last['loss']:.3f}"]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _prompts(facts: Mapping[str, Any]) -> str:
    said = (
        f"Prompts are worded by {_wording(facts['prompts'])}. `chat_template.jinja` beside this "
        "card words them as they were in training: use the chat endpoint, or "
        "`apply_chat_template`. Other wordings answer worse. A prompt as the model reads it:"
    )
    return f"{said}\n\n{FENCE}\n{facts['prompts']['example']}\n{FENCE}"


def _wording(prompts: Mapping[str, Any]) -> str:
    if prompts["template"] == "the tokenizer's own":
        return "the base's own chat template"
    return "a fixed text" if prompts["template"].startswith("plain") else "a template of the run"


def _use(facts: Mapping[str, Any]) -> str:
    said = f"For {facts['reader']}, at k = {facts['top_k']} experts a token"
    said += f" (tier `{facts['tier']}`)" if facts["tier"] else " (the base's own)"
    lines = "\n".join(facts["serve"])
    name = "MODEL" if facts["writes"] in WHOLE else "ADAPTER"
    kind = "python" if lines.startswith("from ") else "sh"
    block = f"{FENCE}{kind}\n{lines}\n{FENCE}"
    return f"{said}:\n\n{block}\n\n`{name}` stands for this folder.{_other_k(facts, kind)}"


def _other_k(facts: Mapping[str, Any], kind: str) -> str:
    """Return how the engine is told another k: its lines that then differ."""
    if not (other := facts["other_k"]):
        return ""
    if not other["serve"]:
        return f"\n\nAt another k it cannot be served: {other['why']}."
    lines = "\n".join(line for line in other["serve"] if line not in facts["serve"])
    fitted = " The factors in its weights were learnt for its own k." if facts["factors"] else ""
    return (
        f"\n\nAt another k, such as {other['top_k']}, for all requests alike:{fitted}\n\n"
        f"{FENCE}{kind}\n{lines}\n{FENCE}"
    )


def _devices(facts: Mapping[str, Any]) -> list[str]:
    text = (
        "A device downloads the base once, and this folder or that of its own tier (`fedmoe export "
        "--tier`), and runs it at its k: in the program above, or by `fedmoe serve ADAPTER` and "
        "`fedmoe generate --adapter ADAPTER --top-k 1`, which answer at any k."
    )
    return [f"## Tiers on a device\n\n{text}\n\n{_table(COLUMNS, table_rows(facts['devices']))}"]


def agreement(proof: Mapping[str, Any]) -> str:
    """Return in words how far the consumer's logits are from those of training."""
    largest = proof["largest_difference"]
    same = f"the likeliest token is the same at {proof['same_tokens']} of {proof['tokens']} places"
    if not proof["rounded_to"]:
        return f"computes the same in a fresh process: logits within {largest:.1e}; {same}"
    lost = f"{100 * proof['share_of_training_rounded_away']:.1f} %"
    return (
        f"read it in a fresh process, weights rounded to {proof['rounded_to']}: {lost} of what was "
        f"learnt is rounded away (`share_of_training_rounded_away` in `fedmoe-export.json`); "
        f"{same}; the largest logit differs by {largest:.2g} (`--dtype float32` rounds nothing)"
    )


def _proof(facts: Mapping[str, Any]) -> str:
    proof = facts["proof"]
    own = f", {proof['of_the_run']} of them test rows of the run" if proof["of_the_run"] else ""
    said = (
        f"Before this folder was put in place, it was tried on {proof['rows']} rows{own}; "
        f"{proof['tokens']} tokens. {proof['by']} {agreement(proof)}."
    )
    for name, found in facts.get("engines", {}).items():
        said += (
            f" {name} {found['version']} gave the same greedy answer, token for token, to "
            f"{found['equal']} of {found['prompts']} test prompts."
        )
    return said + " `fedmoe-export.json` has the facts, and all versions."


def _limits(facts: Mapping[str, Any], licence: str) -> list[str]:
    limits = [
        "It was scored on the run's own test rows, as above; try it on yours before you serve it.",
        "It answers prompts like those it was trained on. Nothing was done to make it safe, "
        "factual or fair elsewhere.",
    ]
    if facts["writes"] in WHOLE:
        limits.append(f"It runs at k = {facts['top_k']} unless the engine is told another one.")
    elif facts["top_k"] != facts["full_top_k"]:
        limits.append("An adapter is served at the base's k, unless the engine is told another.")
    if licence:
        limits.append(f"The base model's licence is {licence}; its terms hold for this, too.")
    else:
        limits.append("The licence of the base model is not known here; see its own card.")
    limits.append(
        "Federated learning leaves rows with their owners; what a model learnt from them can still "
        "be asked of it."
    )
    return limits
