"""Serve a model and call it with OpenAI's client: whole, streamed, and several requests at a time.

pip install '.[serve]' openai
python examples/serve_and_call.py
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from openai import OpenAI

QUESTION = (
    "A cup of tea is 7 ounces of tea. Mia drinks 6 cups of tea. If tea has 3 calories per ounce how many calories did "
    "she consume?"
)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_ready(url: str, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    """Wait for the server to answer.

    Raises:
        RuntimeError: it ended, or took too long.
    """
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/ready", timeout=1):
                return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.2)
    raise RuntimeError(f"dmax serve is not ready; exit code {process.poll()}.")


def call(client: OpenAI) -> None:
    """Ask in three ways."""
    messages = [{"role": "user", "content": QUESTION}]
    reply = client.chat.completions.create(model="nano", messages=messages)  # type: ignore[arg-type]
    print("whole:   ", reply.choices[0].message.content)

    # Fields that OpenAI's API does not have go into extra_body. What streams is final text, never taken back.
    stream = client.chat.completions.create(
        model="nano",
        messages=messages,  # type: ignore[arg-type]
        stream=True,
        extra_body={"decoder": "soft-parallel", "threshold": 0.9},
    )
    print("streamed:", "|".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices))

    # Requests that run at the same time share every forward.
    def tokens(length: int) -> int:
        answer = client.chat.completions.create(model="nano", messages=messages, max_tokens=length)  # type: ignore[arg-type]
        return answer.usage.completion_tokens if answer.usage else 0

    with ThreadPoolExecutor(4) as pool:
        print("together:", list(pool.map(tokens, [16, 32, 64, 128])), "tokens")


def main() -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([sys.executable, "-m", "dmax", "serve", "--model", "nano", "--port", str(port)])
    try:
        wait_until_ready(url, process)
        call(OpenAI(base_url=f"{url}/v1", api_key="none"))
    finally:
        process.terminate()
        process.wait(30)


if __name__ == "__main__":
    main()
