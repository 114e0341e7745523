"""The one model, and the queue before it: requests are answered one at a time, as they came.

A single thread words prompts, sets the tier and generates: nothing else touches the model, and the
event loop stays free for those who wait.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from fedmoe.errors import DataError, FedMoEError
from fedmoe.export.generate import Answer, Generator
from fedmoe.export.loaded import Loaded
from fedmoe.models.decode import Sampling
from fedmoe.seeds import generator
from fedmoe.serving.limits import Limits
from fedmoe.serving.request import Refused, Request, Started
from fedmoe.system.json_text import unwritable

Event = Started | str | Answer
"""An event of a request: its start, a piece of text, or the whole."""


class Engine:
    """Answers requests by one model."""

    def __init__(self, loaded: Loaded, limits: Limits) -> None:
        self.loaded, self.limits = loaded, limits
        self.generator = Generator(loaded.model, loaded.tokenizer, loaded.text)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="fedmoe-model")
        self._lock = threading.Lock()
        self._present = 0
        self._last_seconds = 1.0
        self._ending = False

    def end(self) -> None:
        """End the answer that is being generated at its next token, and take no more.

        It takes no lock: signals call it.
        """
        self._ending = True

    def close(self) -> None:
        """End, and wait until nothing is generated."""
        self.end()
        self._worker.shutdown(wait=True, cancel_futures=True)

    @property
    def present(self) -> int:
        """Requests that are answered or wait."""
        return self._present

    async def events(self, request: Request) -> AsyncIterator[Event]:
        """Yield what comes of a request; closed early, its generation ends.

        Raises:
            Refused: there is no room or no time for it, or it cannot be answered.
        """
        self._enter()
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Event | Refused]()
        gone = threading.Event()
        begun = time.monotonic()

        def put(event: Event | Refused) -> None:
            if not gone.is_set():
                loop.call_soon_threadsafe(queue.put_nowait, event)

        late = begun + self.limits.seconds

        def ended() -> bool:
            return gone.is_set() or self._ending or time.monotonic() > late

        future = self._worker.submit(self._work, request, put, ended)
        future.add_done_callback(lambda _: self._leave())
        started = False
        try:
            while True:
                # No `asyncio.timeout`: who takes the next event may be another task.
                event = await asyncio.wait_for(queue.get(), late + 1 - time.monotonic())
                if isinstance(event, Refused):
                    raise event
                if isinstance(event, Answer) and event.finish == "ended":
                    raise self._cut(started)
                started = True
                yield event
                if isinstance(event, Answer):
                    return
        except TimeoutError:
            raise self._cut(started) from None
        finally:
            gone.set()
            future.cancel()

    def _enter(self) -> None:
        with self._lock:
            if self._ending:
                raise self._cut(False)
            if self._present > self.limits.queue:
                said = f"{self._present} requests are answered or wait, as many as may"
                raise Refused(
                    f"{said} (--queue)",
                    status=429,
                    code="rate_limit_exceeded",
                    retry_after=max(1, round(self._present * self._last_seconds)),
                )
            self._present += 1

    def _leave(self) -> None:
        with self._lock:
            self._present -= 1

    def _cut(self, started: bool) -> Refused:
        """Return why an answer is not finished, or was not begun."""
        did = "was not finished" if started else "did not begin"
        if self._ending:
            said = f"the server is ending; the answer {did}"
            return Refused(said, status=503, code="server_error")
        said = f"the answer {did} within {self.limits.seconds:g} seconds (--seconds)"
        return Refused(said, status=503, code="timeout", retry_after=max(1, self._present))

    def _work(
        self, request: Request, put: Callable[[Event | Refused], None], ended: Callable[[], bool]
    ) -> None:
        """Answer one request; runs in the worker's thread, and nothing else does."""
        if ended():
            put(self._cut(started=False))
            return
        begun = time.monotonic()
        try:
            put(self._answer(request, put, ended))
        except Refused as refused:
            put(refused)
        except FedMoEError as error:
            param = "messages" if request.chat else "prompt"
            put(Refused(str(error), param if isinstance(error, DataError) else None))
        except RecursionError:
            put(Refused("the request is nested too deeply"))
        except (MemoryError, torch.OutOfMemoryError):
            said = "there is not enough memory for this request"
            put(Refused(said, status=503, code="server_error"))
        except Exception:  # a fault of ours ends one request, and not the endpoint
            traceback.print_exc(file=sys.stderr)
            said = "the server failed; its terminal says how"
            put(Refused(said, status=500, code="server_error"))
        self._last_seconds = time.monotonic() - begun

    def _answer(
        self, request: Request, put: Callable[[Event | Refused], None], ended: Callable[[], bool]
    ) -> Answer:
        ids = self._ids(request)
        new = self._room(request, len(ids))
        try:
            top_k = self.loaded.use(request.model, request.top_k)
        except FedMoEError as error:
            raise Refused(f"{error}; top_k counts experts here", "top_k") from error
        seed = request.seed
        if request.temperature:
            seed = secrets.randbits(53) if seed is None else seed
        sampling = None
        if seed is not None and request.temperature:
            drawn = generator(seed, "answer")
            sampling = Sampling(request.temperature, request.top_p, drawn)
        put(Started(top_k, seed if sampling else None))
        return self.generator.answer(
            ids,
            new,
            sampling=sampling,
            stops=request.stops,
            bare=request.chat,
            each=put,
            ended=ended,
        )

    def _ids(self, request: Request) -> Sequence[int]:
        """Return the prompt as ids: a conversation is worded as in training, a text is not."""
        prompt, tools = request.prompt, request.tools
        if isinstance(prompt, str):
            if odd := unwritable(prompt):
                raise Refused(f"the prompt {odd}", "prompt")
            if self.loaded.model.form.name != "causal":
                return self.generator.prompt(prompt)
            if not (ids := self.loaded.tokenizer([prompt], verbose=False)["input_ids"][0]):
                raise Refused("the prompt has no token", "prompt")
            return ids
        if not isinstance(prompt[0], int):
            return self.generator.prompt([*prompt], tools)  # pyright: ignore[reportArgumentType]
        size = self.loaded.model.model.get_input_embeddings().weight.shape[0]  # pyright: ignore
        if odd := [token for token in prompt if not 0 <= token < size]:  # pyright: ignore
            raise Refused(f"prompt: {odd[0]} is no token; expected 0 to {size - 1}", "prompt")
        return prompt  # pyright: ignore[reportReturnType]

    @property
    def positions(self) -> int | None:
        """The tokens that the model is made for: prompt and answer, or in an encoder the prompt."""
        return self.generator.positions[0]

    def _room(self, request: Request, prompt: int) -> int:
        """Return how long the answer may become."""
        limits, new = self.limits, request.max_new_tokens
        longest = min(limits.prompt_tokens, self.positions or limits.prompt_tokens)
        wanted = limits.new_tokens if new is None else new
        left = wanted if self.positions is None else self.positions
        if self.positions is not None and self.loaded.model.form.name == "causal":
            left -= prompt
        if prompt <= longest and left >= (new or 1):
            return min(wanted, left)
        said = f"the prompt has {prompt:,} tokens"
        said += f", and {new:,} new ones are wanted" if new else ""
        said += (
            f"; a prompt may have {longest:,}, and with its answer {self.positions or longest:,}"
        )
        param = "messages" if request.chat else "prompt"
        raise Refused(said, param, code="context_length_exceeded")
