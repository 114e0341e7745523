"""`fedmoe serve`: answers over HTTP, in OpenAI's format."""

from __future__ import annotations

import gc
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmoe.cli import arguments, sources
from fedmoe.errors import FedMoEError

if TYPE_CHECKING:
    from socket import socket

    from fedmoe.export.loaded import Loaded
    from fedmoe.serving.app import Endpoint
    from fedmoe.serving.limits import Limits

KEY = "FEDMOE_API_KEY"


@click.command()
@click.argument("source", help="A run's folder, an exported adapter's, or a base model.")
@arguments.experts
@arguments.offload
@arguments.which
@click.option("--base", default="", help="The base model of an adapter, if it has moved.")
@click.option("--host", default="127.0.0.1", help="The address to listen at.")
@click.option("--port", default=8000, type=click.IntRange(0, 65535), help="Its port; 0 takes any.")
@click.option(
    "--api-key",
    type=arguments.FILE,
    help=f"A file with the key that clients must send; {KEY} in the environment does the same.",
)
@click.option(
    "--max-new-tokens", default=512, type=click.IntRange(1), help="Length of the longest answer."
)
@click.option(
    "--seconds", default=120.0, type=click.FloatRange(1), help="Time of a request, with its wait."
)
@click.option("--queue", default=8, type=click.IntRange(0), help="Requests that may wait.")
def serve(
    source: str,
    experts: Any,
    offload: bool | None,
    which: str,
    base: str,
    host: str,
    port: int,
    api_key: Path | None,
    max_new_tokens: int,
    seconds: float,
    queue: int,
) -> None:
    """Serve a run's tiers over HTTP, to try them on one machine.

    Programs that talk to OpenAI's API can ask them. This is no production server: one model answers
    one request at a time. The model of a request is a tier, and its field top_k the number of
    experts that each token reaches, if not the tier's. The first screen has a request to copy.

    \b
    Examples:
      fedmoe serve runs/quickstart
      fedmoe serve my-adapter --port 9000 --seconds 30
    """
    key = _key(api_key)
    sources.check_source(source, which)
    from fedmoe.serving.limits import Limits
    from fedmoe.serving.server import listening

    limits = Limits(new_tokens=max_new_tokens, seconds=seconds, queue=queue)
    with listening(host, port) as listener:
        arguments.end_like_ctrl_c()
        arguments.one_thread()
        from fedmoe.export.loaded import load

        loaded = load(source, which, base, experts, offload)
        _serve(loaded, limits, listener, key, experts, offload)


def _serve(loaded: Loaded, limits: Limits, listener: socket, key: str, *form: Any) -> None:
    """Answer requests until Ctrl-C; `form` is that of experts, and whether they are in a file."""
    from fedmoe.serving.app import Endpoint
    from fedmoe.serving.engine import Engine
    from fedmoe.serving.guard import LOOPBACK
    from fedmoe.serving.server import is_loopback, server_of, url_of

    engine = Engine(loaded, limits)
    endpoint = Endpoint(engine, lambda line: print(line, flush=True))
    host = str(listener.getsockname()[0])
    hosts = LOOPBACK if is_loopback(host) else ()
    _first_screen(endpoint, url_of(listener), bool(key), *form)
    if not hosts:
        print(
            f"WARNING: {host} is no address of this machine alone: whoever reaches it can use the "
            "model, unencrypted" + ("" if key else f", and without a key (--api-key, {KEY})"),
            flush=True,
        )
    try:
        with suppress(KeyboardInterrupt):
            server_of(endpoint.app(hosts, key), limits, engine.end).run(sockets=[listener])
    finally:
        engine.close()
    print("no longer serving")
    # Python would look through all of torch's objects once more as it ends, for a second.
    gc.freeze()


def _key(file: Path | None) -> str:
    """Return the key that clients must send; empty if there is none.

    Raises:
        FedMoEError: the file cannot be read, or the key is empty.
    """
    if file is None and KEY not in os.environ:
        return ""
    where = KEY if file is None else str(file)
    try:
        key = os.environ[KEY] if file is None else file.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise FedMoEError(f"--api-key {where}: it cannot be read: {error}") from error
    if not (key := key.strip()) or not key.isascii() or not key.isprintable():
        raise FedMoEError(f"{where}: the key is empty, or not one line of ASCII letters")
    return key


def _first_screen(endpoint: Endpoint, url: str, key: bool, *form: Any) -> None:
    """Print what is served and within which bounds, and what the answers follow."""
    from fedmoe.cli.terminal import print_table, say, table, terminal
    from fedmoe.data.shown import template_line
    from fedmoe.export.device_costs import devices_of
    from fedmoe.export.devices import COLUMNS, as_facts, table_rows
    from fedmoe.serving.request import WITHOUT_EFFECT

    console, loaded, limits = terminal(), endpoint.engine.loaded, endpoint.engine.limits
    say(console, f"{loaded.name} at {url} (Ctrl-C ends this)")
    say(console, "To try an adapter on one machine; this is no production server.")
    if loaded.note:
        say(console, loaded.note)
    say(console, f"models: {', '.join(loaded.levels)}" + (", with an API key" if key else ""))
    for tier, why in loaded.left_out.items():
        say(console, f"not served: {tier}: {why}")
    if loaded.saved is not None:
        rows = table_rows(as_facts(devices_of(loaded.saved, *form)))
        note = "fedmoe export RUN ADAPTER --tier TIER makes the adapter of a tier"
        title = "a device of each tier" + (", as served here" if any(form) else "")
        print_table(console, table(title, COLUMNS, rows, note=note))
    if loaded.model.form.name == "causal":
        say(console, template_line(loaded.tokenizer, loaded.text))
    say(console, _of_functions(endpoint))
    longest = min(limits.prompt_tokens, endpoint.engine.positions or limits.prompt_tokens)
    say(
        console,
        f"at most {longest:,} tokens a prompt, {limits.new_tokens:,} new ones, {limits.seconds:g} "
        f"seconds, {limits.queue} requests that wait, {limits.body_bytes:,} bytes a request; one "
        "is answered at a time",
    )
    say(
        console,
        "temperature is 0 when omitted: the likeliest token, as in the run's scores; top_k is the "
        f"number of experts; without effect: {', '.join(WITHOUT_EFFECT)}; fields that are not "
        "supported are refused",
    )
    asked = {"model": next(iter(loaded.levels)), "messages": [{"role": "user", "content": "hello"}]}
    head = f"curl {url}/chat/completions -H 'Content-Type: application/json'"
    head += f' -H "Authorization: Bearer ${KEY}"' if key else ""
    print(f"{head} -d '{json.dumps(asked)}'", flush=True)


def _of_functions(endpoint: Endpoint) -> str:
    """Return what becomes of functions in requests, and of their calls in answers."""
    if endpoint.no_tools:
        return f"requests with tools are refused: {endpoint.no_tools}"
    calls = "read into tool_calls" if endpoint.form else "text: the template writes no JSON of them"
    said = f"function calls in answers are {calls}"
    if endpoint.engine.loaded.text.describe_tools:
        return said
    return f"{said}; descriptions of functions (tools) are left out of prompts, as in training"
