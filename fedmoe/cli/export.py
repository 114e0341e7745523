"""`fedmoe export`: a run's adapter for PEFT, an engine, or merged into its model."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from fedmoe.cli import arguments, sources
from fedmoe.errors import FedMoEError


@click.command()
@click.argument("run", type=arguments.FILE, help="The folder of a run.")
@click.argument("out", type=arguments.FILE, help="The folder to make.")
@click.option(
    "--for",
    "reader",
    default="peft",
    type=click.Choice(["peft", "vllm", "sglang", "merged", "llama.cpp", "llama.cpp-lora", "mlx"]),
    help="The program that reads it.",
)
@click.option("--tier", default="", help="Take this tier's k and rank; `lowest` for the lowest k.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16", "q8_0"]),
    help="Type of merged weights; the base's own by default. `q8_0` for llama.cpp alone.",
)
@click.option(
    "--check",
    "engine",
    type=click.Choice(["vllm", "llama.cpp"]),
    help="Ask it in an engine, too, whose environment is made first: vLLM takes minutes.",
)
@click.option("--without-rescaling", is_flag=True, help="Drop learned factors.")
@arguments.which
def export(
    run: Path,
    out: Path,
    reader: str,
    tier: str,
    dtype: str,
    engine: str | None,
    without_rescaling: bool,
    which: str,
) -> None:
    """Export a run's adapter, proved to answer as it was scored.

    Nothing is written unless the program's library, in a fresh process, computes the same logits,
    or loses less than a twentieth of what was learnt where merged weights are rounded. The folder
    has the tokenizer, the wording of prompts, a model card and a certificate.

    \b
    Examples:
      fedmoe export runs/quickstart my-adapter
      fedmoe export runs/quickstart my-model --for merged --tier lowest
    """
    reads = {"vllm": ("merged",), "llama.cpp": ("llama.cpp", "llama.cpp-lora")}
    if engine and reader not in reads[engine]:
        raise click.UsageError(f"--check {engine} needs --for {' or '.join(reads[engine])}")
    from fedmoe.export.architectures import architecture_of
    from fedmoe.export.formats import check_dtype, check_form
    from fedmoe.system.extras import require

    check_dtype(reader, dtype)
    sources.check_run(run, which, [tier] if tier not in ("", "lowest") else [])
    if out.exists():
        raise FedMoEError(f"{out} exists already; name a folder that does not")
    check_form(reader, model_type := sources.model_type_of(run))
    if reader.startswith("llama.cpp"):
        require(f"fedmoe export --for {reader}", "base-models", "gguf")
        if model_type:
            architecture_of(model_type)
    from fedmoe.export.card import agreement
    from fedmoe.export.saved import SavedRun
    from fedmoe.report.facts import adapter_note
    from fedmoe.report.run import read_run
    from fedmoe.system.waiting import waiting

    arguments.one_thread()
    saved, known = SavedRun.open(run, which), read_run(run)
    if not known.complete:
        print(f"fedmoe: {adapter_note(known, which, saved.round)}", file=sys.stderr)
    with waiting("exporting, and loading it again in a fresh process"):
        done = saved.export(
            out, format=reader, tier=tier, dtype=dtype, without_rescaling=without_rescaling
        )
    proof = done.facts["proof"]
    print(f"{out}: {proof['by']} {agreement(proof)}")
    print("serve it so:")
    for line in done.source.commands(str(out)):
        print(f"  {line}".rstrip())
    if engine:
        from fedmoe.export.engine import check_in_engine, environment

        print(check_in_engine(engine, done, saved, environment(engine)))
