"""Many streaming clients at once: does the server hold, and how fast is it?

Starts `glmcore serve` on a checkpoint, lets `--clients` connections ask one question after the other for `--seconds`,
and tells errors, stuck requests, tokens per second, time to the first token and between tokens, and how the memory of
the server grows. With `--peer` the same clients then ask `transformers serve` for the same time; both then run random
weights of the same sizes, whose answers do not end by themselves, so that every answer is as long.

    python benches/serve.py runs/nano/export/bf16                  # 200 clients, 300 s
    python benches/serve.py runs/nano/export/bf16 --short --peer   # 16 clients, 20 s each
"""

import argparse
import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

QUESTION = "What is {} + {}? Then count to twenty, one number after the other."
STUCK_S = 120.0
"""Silence after which a request counts as stuck."""
TRANSFORMERS_OPTIONS = ("--continuous-batching", "--device", "cpu", "--dtype", "float32")


@dataclass
class Seen:
    """What all clients saw."""

    finished: int = 0
    tokens: int = 0
    errors: list[str] = field(default_factory=list)
    stuck: int = 0
    first_s: list[float] = field(default_factory=list)
    next_s: list[float] = field(default_factory=list)


async def ask(host: str, port: int, body: bytes, seen: Seen) -> None:
    """One request over a connection of its own, read event by event."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection(host, port)
    try:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        status = await asyncio.wait_for(reader.readline(), STUCK_S)
        if b" 200 " not in status:
            seen.errors.append(status.decode().strip() or "connection closed")
            return
        last, ended, reason = None, False, None
        while line := await asyncio.wait_for(reader.readline(), STUCK_S):
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                ended = True
                break
            event = json.loads(line[6:])
            if "error" in event:
                seen.errors.append(event["error"]["message"])
                return
            seen.tokens += (event.get("usage") or {}).get("completion_tokens", 0)
            choice = event["choices"][0] if event["choices"] else {"delta": {}}
            reason = choice.get("finish_reason") or reason
            if not (choice["delta"].get("content") or choice["delta"].get("reasoning_content")):
                continue
            now = time.perf_counter()
            (seen.first_s if last is None else seen.next_s).append(now - (began if last is None else last))
            last = now
        if not ended and reason is None:
            seen.errors.append("the stream ended early")
        else:
            seen.finished += 1
    finally:
        writer.close()


async def client(host: str, port: int, number: int, model: str, until: float, max_tokens: int, seen: Seen) -> None:
    """Ask until the time is up."""
    turn = 0
    while time.perf_counter() < until:
        turn += 1
        messages = [{"role": "user", "content": QUESTION.format(number, turn)}]
        body = {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 1.0}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        try:
            await ask(host, port, json.dumps(body).encode(), seen)
        except asyncio.TimeoutError:
            seen.stuck += 1
        except OSError as error:
            seen.errors.append(repr(error))
            await asyncio.sleep(0.1)


async def load(host: str, port: int, model: str, args: argparse.Namespace, pid: int) -> tuple[Seen, list[float]]:
    """Run all clients; also the memory of the server in MiB, at each twentieth of the time."""
    seen = Seen()
    until = time.perf_counter() + args.seconds
    tasks = [
        asyncio.create_task(client(host, port, number, model, until, args.max_tokens, seen))
        for number in range(args.clients)
    ]
    memory = []
    while time.perf_counter() < until:
        await asyncio.sleep(args.seconds / 20)
        memory.append(resident_mib(pid))
    await asyncio.gather(*tasks)
    return seen, memory


def resident_mib(pid: int) -> float:
    """Memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def cpu_s(pid: int) -> float:
    """Processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def started(command: list[str], host: str, port: int) -> Iterator[int]:
    """A server process that listens."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        deadline = time.perf_counter() + 120
        while True:
            if process.poll() is not None:
                raise SystemExit(f"the server ended with {process.returncode}: {' '.join(command)}")
            try:
                socket.create_connection((host, port), 1).close()
                break
            except OSError:
                if time.perf_counter() > deadline:
                    raise
                time.sleep(0.2)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def measure(name: str, command: list[str], port: int, model: str, args: argparse.Namespace) -> None:
    """One server under load, as a row of the table."""
    with started(command, "127.0.0.1", port) as pid:
        asyncio.run(load("127.0.0.1", port, model, argparse.Namespace(seconds=2, clients=2, max_tokens=8), pid))
        before, began = cpu_s(pid), time.perf_counter()
        seen, memory = asyncio.run(load("127.0.0.1", port, model, args, pid))
        seconds, used = time.perf_counter() - began, cpu_s(pid) - before
    tenth = memory[len(memory) // 4]
    cells = [
        *(name, args.clients, f"{seconds:.0f}", seen.finished, len(seen.errors), seen.stuck),
        *(f"{seen.tokens / seconds:.0f}", f"{seen.tokens / used:.0f}"),
        " / ".join(f"{1000 * value:.0f}" for value in percentiles(seen.first_s)),
        " / ".join(f"{1000 * value:.0f}" for value in percentiles(seen.next_s)),
        f"{tenth:.0f} -> {memory[-1]:.0f}",
    ]
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)
    for error in sorted(set(seen.errors)):
        print(f"  {seen.errors.count(error)} times: {error}", file=sys.stderr)


def percentiles(values: list[float]) -> list[float]:
    """The 50th, 95th and 99th."""
    if len(values) < 2:
        return [float("nan")] * 3
    cuts = statistics.quantiles(values, n=100)
    return [cuts[49], cuts[94], cuts[98]]


def with_random_weights(model: Path, directory: Path) -> Path:
    """A checkpoint like `model` that has learned nothing."""
    from glmcore.model.config import GlmConfig
    from glmcore.model.glm import Glm

    shutil.copytree(model, directory, dirs_exist_ok=True)
    Glm(GlmConfig.from_hf(model / "config.json")).init_weights(seed=0).save_pretrained(directory)
    return directory


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="checkpoint directory")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--short", action="store_true", help="16 clients, 20 s")
    parser.add_argument("--peer", action="store_true", help="also transformers serve")
    args = parser.parse_args()
    if args.short:
        args.clients, args.seconds = 16, 20.0
    print("| server | clients | s | answers | errors | stuck | tokens/s | tokens per CPU s ", end="")
    print("| first token, ms p50 / p95 / p99 | next token, ms p50 / p95 / p99 | MiB after a quarter -> at the end |")
    print("| --- " * 11 + "|")
    with tempfile.TemporaryDirectory() as scratch:
        model = with_random_weights(args.model, Path(scratch) / "model") if args.peer else args.model
        port = free_port()
        command = [sys.executable, "-m", "glmcore", "serve", str(model), f"listen.port={port}", "model_name=m"]
        measure("glmcore", command, port, "m", args)
        if args.peer:
            port = free_port()
            peer = str(Path(sys.executable).parent / "transformers")
            command = [peer, "serve", str(model), "--port", str(port), *TRANSFORMERS_OPTIONS]
            measure("transformers serve", command, port, str(model), args)


if __name__ == "__main__":
    main()
