"""The model card of an export: where it comes from, its scores, how it is served, its limits."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmoe.export.formats import WHOLE
from fedmoe.report.run import Run, read_run
from fedmoe.report.run_tables import wilson_interval
from fedmoe.report.units import count_text, percent_text

FENCE = "```"


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
    merged, base = facts["writes"] in WHOLE, facts["base"]
    kind = f"`{base}` with a LoRA adapter of its experts merged in"
    if not merged:
        kind = f"A LoRA adapter of every expert for `{base}`"
    head = {"base_model": base, "tags": ["moe", "lora", "federated-learning", "fedmoe"]}
    head |= {"license": licence} if licence else {}
    head |= {"library_name": "transformers" if merged else "peft"}
    known = read_run(run) if run is not None and (run / "ledger.jsonl").is_file() else None
    parts = [
        "---\n" + "".join(f"{k}: {json.dumps(v)}\n" for k, v in head.items()) + "---",
        f"# {facts['name']}\n\n{kind}, trained by federated learning with fedmoe.",
        *(_run_parts(known) if known else []),
        "## Prompts\n\n" + _prompts(facts),
        "## Use\n\n" + _use(facts),
        "## Proof\n\n" + _proof(facts),
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in _limits(facts, licence)),
    ]
    return "\n\n".join(parts) + "\n"


def _run_parts(run: Run) -> list[str]:
    head, done = run.header, run.ok()
    trained = len({line["client"] for line in done})
    text = (
        f"{trained} of {head['num_clients']} owners trained on data that stayed with them; "
        f"{run.num_finished} of "
        f"{head['num_rounds']} rounds of {head['clients_per_round']} owners; "
        f"{count_text(sum(c['tokens'] for c in done))} tokens; aggregated by {head['strategy']}."
    )
    tiers = [
        [tier.name, str(tier.top_k), count_text(len(tier.clients)), *_scores(run, tier.name)]
        for tier in run.tiers
    ]
    header = [
        "tier",
        "experts a token",
        "owners",
        f"{run.score_name} before",
        "after",
        "95 % interval",
        "loss",
    ]
    return ["## Training\n\n" + text, "## Scores\n\n" + _table(header, tiers)]


def _scores(run: Run, tier: str) -> list[str]:
    curve = run.curve("test", tier) or run.curve("validation", tier)
    if not curve:
        return ["–"] * 4
    first, last = curve[0], curve[-1]
    if last["score"] is None:  # scored by the loss alone
        return ["–"] * 3 + [f"{last['loss']:.3f}"]
    low, high = wilson_interval(last["score"], last["examples"])
    before = percent_text(first["score"]) if first["round"] == 0 else "–"
    between = f"{100 * low:.1f} to {100 * high:.1f}" if run.is_share else "–"
    return [before, percent_text(last["score"]), between, f"{last['loss']:.3f}"]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _prompts(facts: Mapping[str, Any]) -> str:
    said = (
        f"Prompts are worded by {_wording(facts['prompts'])}. `chat_template.jinja` beside this "
        "card words them as they were in training: use the chat endpoint, or `apply_chat_template`."
    )
    return f"{said}\n\n{FENCE}\n{facts['prompts']['example']}\n{FENCE}"


def _wording(prompts: Mapping[str, Any]) -> str:
    if prompts["template"] == "the tokenizer's own":
        return "the base's own chat template"
    return "a fixed text" if prompts["template"].startswith("plain") else "a template of the run"


def _use(facts: Mapping[str, Any]) -> str:
    said = f"For {facts['reader']}, at k = {facts['top_k']} experts a token"
    if facts["tier"]:
        said += f" (tier `{facts['tier']}`)"
    lines = "\n".join(facts["serve"])
    name = "MODEL" if facts["writes"] in WHOLE else "ADAPTER"
    return f"{said}:\n\n{FENCE}\n{lines}\n{FENCE}\n\n`{name}` stands for this folder."


def _proof(facts: Mapping[str, Any]) -> str:
    proof = facts["proof"]
    return (
        f"Loaded again by {proof['by']} in a fresh process: on {proof['rows']} rows "
        f"({proof['tokens']} tokens) the logits differ from those of training by "
        f"{proof['largest_difference']:.1e} at most, and the likeliest token is the same at "
        f"{proof['same_tokens']} of them. The facts are in `fedmoe-export.json`."
    )


def _limits(facts: Mapping[str, Any], licence: str) -> list[str]:
    limits = ["It was scored on the run's own test rows; try it on yours before you serve it."]
    if facts["top_k"] != facts["full_top_k"] and facts["writes"] not in WHOLE:
        limits.append("An adapter is served at the base's k, unless the engine is told another.")
    if not licence:
        limits.append("The licence of the base model is not known here; see its own card.")
    limits.append(
        "Federated learning leaves rows with their owners; what a model learnt from them can still "
        "be asked of it."
    )
    return limits
