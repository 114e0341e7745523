"""The endpoint on a tiny model, in this process."""

import asyncio
from contextlib import asynccontextmanager, contextmanager

import httpx
import openai
from transformers import AutoTokenizer

from fedmoe.data.text import TextSettings
from fedmoe.export.loaded import Level, Loaded
from fedmoe.models.folder import MINI, model_folder
from fedmoe.serving.app import Endpoint
from fedmoe.serving.engine import Engine
from fedmoe.serving.guard import LOOPBACK
from fedmoe.serving.limits import Limits

URL = "http://127.0.0.1:8000/v1"
CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
ASK = [{"role": "user", "content": "Turn on the lights."}]
MOST = 12


def tiny_loaded(tiny_model, random_adapter):
    """A tiny model with two tiers and its base, each of which answers otherwise."""
    model = tiny_model(vocab_size=4096)
    adapter = random_adapter(model.layout, std=0.3)
    levels = {"high": Level(4, adapter=adapter), "low": Level(1, adapter=adapter), "base": Level(4)}
    tokenizer = AutoTokenizer.from_pretrained(model_folder(MINI))
    text, none = TextSettings(template="chat"), {"own": "no common model"}
    return Loaded(model, tokenizer, text, levels, "tiny", left_out=none)


@contextmanager
def endpoint(loaded, **limits):
    engine = Engine(loaded, Limits(**({"new_tokens": MOST} | limits)))
    try:
        yield Endpoint(engine)
    finally:
        engine.close()


@asynccontextmanager
async def web(made, key=""):
    """A plain HTTP client of an endpoint."""
    transport = httpx.ASGITransport(made.app(LOOPBACK, key))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        yield http


def asked(loaded, ask, key="", **limits):
    """What a coroutine that gets OpenAI's client and a plain one returns."""

    async def run():
        with endpoint(loaded, **limits) as made:
            async with web(made, key) as http:
                client = openai.AsyncOpenAI(
                    api_key="x", base_url=URL, http_client=http, max_retries=0
                )
                return await ask(client, http)

    return asyncio.run(run())
