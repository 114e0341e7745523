"""`fedmoe serve` as a process: real clients, their ends and its own."""

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager

import httpx
import openai
import pytest

from fedmoe.cli.main import main
from fedmoe.serving.server import listening

ASK = {"model": "base", "prompt": "Once upon a time"}


@contextmanager
def served(*options, **environment):
    """A server of the built-in model; its first screen, its address and its process."""
    command = [sys.executable, "-m", "fedmoe.cli.main", "serve", "mini", "--port", "0", *options]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | environment | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        lines = []
        while "curl http" not in (lines or [""])[-1]:
            lines.append(process.stdout.readline())
            assert lines[-1], lines
        screen = "".join(lines)
        yield screen, re.search(r"http://\S+/v1", screen)[0], process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.slow
def test_a_process_serves_clients_that_come_and_go_until_it_is_ended():
    with served(FEDMOE_API_KEY="secret") as (screen, url, process):
        assert "no production server" in screen
        assert "127.0.0.1" in url
        client = openai.OpenAI(base_url=url, api_key="secret", max_retries=0)
        whole = client.completions.create(**ASK, max_tokens=8, extra_body={"top_k": 1})
        chunks = client.completions.create(
            **ASK, max_tokens=8, extra_body={"top_k": 1}, stream=True
        )
        assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
        long = {**ASK, "max_tokens": 500, "temperature": 2.0, "seed": 1, "stream": True}
        with client.completions.create(**long) as stream:
            next(iter(stream))  # and leave
        assert client.completions.create(**ASK, max_tokens=1).usage.completion_tokens == 1
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=url, api_key="x").models.list()
        headers = {"Host": "evil.example", "Authorization": "Bearer secret"}
        assert httpx.get(f"{url}/models", headers=headers).status_code == 403
        with client.completions.create(**long) as stream:
            next(iter(stream))
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        rest = process.stdout.read()
        assert "no longer serving" in rest
        assert "left by its client" in rest
        assert "Traceback" not in rest


def test_what_cannot_be_served_is_refused_before_a_model_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("FEDMOE_API_KEY", raising=False)
    (tmp_path / "key").write_text(" \n")
    with listening("127.0.0.1", 0) as taken:
        number = str(taken.getsockname()[1])
        for options, said in (
            (["--port", number], "is in use"),
            (["--host", "192.0.2.1"], "cannot be used"),
            (["--api-key", str(tmp_path / "none")], "it cannot be read"),
            (["--api-key", str(tmp_path / "key")], "the key is empty"),
            (["--port", "70000"], "70000 is not in the range"),
        ):
            assert main(["serve", "no such model", *options]) == 2
            assert said in capsys.readouterr().err
    assert main(["serve", str(tmp_path), "--port", "0"]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert main(["serve", "--help"]) == 0
    assert "no production server" in capsys.readouterr().out
