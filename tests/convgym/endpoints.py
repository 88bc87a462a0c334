"""Endpoints of the OpenAI protocol for tests: a real one with a real model, and one that misbehaves on purpose."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MODEL = "algos/policies/tiny/nano-0"


class Served:
    """`transformers serve` with an embedded checkpoint, in a process of its own."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1"
        command = [Path(sys.executable).with_name("transformers"), "serve", MODEL, "--host", "127.0.0.1"]
        self.process = subprocess.Popen(
            [*map(str, command), "--port", str(port), "--device", "cpu"],
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def wait(self, seconds: float = 60.0) -> None:
        """Returns when it answers."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, "the server has left; is transformers[serving] installed?"
            try:
                with urllib.request.urlopen(self.url.replace("/v1", "/health"), timeout=1.0):
                    return
            except OSError:
                time.sleep(0.1)
        raise TimeoutError("the server did not start")

    def kill(self) -> None:
        """Ends it at once, as a power cut would."""
        self.process.kill()
        self.process.wait()

    def options(self, **settings: Any) -> dict[str, Any]:
        """The options of a user or judge that asks it."""
        return {"base_url": self.url, "model": MODEL, "max_tokens": 16, "timeout_s": 20.0, "retries": 1, **settings}


Answer = Callable[["Handler", dict[str, Any]], None]


class Handler(BaseHTTPRequestHandler):
    """Answers as the test says."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append({"path": self.path, "key": self.headers["authorization"], **body})  # type: ignore[attr-defined]
        self.server.answer(self, body)  # type: ignore[attr-defined]

    def send(self, status: int, body: bytes, **headers: str) -> None:
        """Sends one answer."""
        self.send_response(status)
        for name, value in {"content-type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def say(self, text: str) -> None:
        """Sends a chat completion."""
        message = {"role": "assistant", "content": text}
        usage = {"prompt_tokens": 7, "completion_tokens": 3}
        self.send(200, json.dumps({"choices": [{"message": message}], "usage": usage}).encode())

    def log_message(self, *arguments: Any) -> None:
        """Nothing."""


@contextmanager
def scripted(answer: Answer) -> Iterator[ThreadingHTTPServer]:
    """Serves on a free port of 127.0.0.1 while the block runs; ``server.requests`` keeps what came."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.answer, server.requests = answer, []  # type: ignore[attr-defined]
    server.url = f"http://127.0.0.1:{server.server_address[1]}/v1"  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def asked(body: dict[str, Any]) -> dict[str, Any]:
    """The data of a prompt."""
    return json.loads(body["messages"][1]["content"])


def rewording(handler: Handler, body: dict[str, Any]) -> None:
    """Says what has to be said in slightly other words, as a good model would."""
    handler.say(f'"{asked(body)["say"]} Cheerio"')
