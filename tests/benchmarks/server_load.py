"""What the server answers a second, and how late: users in a process of their own, each with one connection.

    python -m tests.benchmarks.server_load INDEX [--users 1 8 32] [--seconds 5] [--queries FILE] [--onnx FOLDER]

INDEX is an address with a published version and its query encoder. Users ask one query after another over HTTP/1.1 to
loopback: vectors (drawn), and texts (FILE, one a line; default: words drawn from the products' titles). `encode` and
`search` are the medians that the answers tell, apart from HTTP.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle

import numpy as np
from rich.console import Console
from rich.table import Table

from index_builder import IndexReader
from tests.benchmarks.machine import command_line, machine_line

WARM_UP_SECONDS = 1.0


@contextmanager
def server(index: str, onnx: str | None) -> Iterator[int]:
    """The server in a process of its own; gives its port."""
    command = [sys.executable, "-m", "pipelines.serve", "--index", index, "--server.port", "0"]
    command += ["--server.onnx_uri.main", onnx] if onnx else []
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr or ():
            if found := re.search(r"listening at http://127\.0\.0\.1:(\d+)", line):
                break
        else:
            raise SystemExit("the server did not start")
        # Its log goes on; nobody reads it here, and a full pipe would stop it.
        subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
        yield int(found[1])
    finally:
        process.terminate()
        process.wait()


async def user(port: int, bodies: Iterator[bytes], until: float, times: list[float], parts: list[tuple[float, float]]):
    """Asks one query after another over one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.perf_counter() < until:
        body = next(bodies)
        head = (
            f"POST /search HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        began = time.perf_counter()
        writer.write(head.encode() + body)
        answered = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(re.search(r"content-length: (\d+)", answered, re.IGNORECASE)[1])  # type: ignore[index]
        found = await reader.readexactly(length)
        times.append(time.perf_counter() - began)
        if not answered.startswith("HTTP/1.1 200"):
            raise SystemExit(f"{answered}{found.decode()}")
        answer = json.loads(found)
        parts.append((answer["encode_ms"], answer["search_ms"]))
    writer.close()


async def load(
    port: int, bodies: list[bytes], users: int, seconds: float
) -> tuple[list[float], list[tuple[float, float]]]:
    """Times of all answers of so many users, in seconds, and their (encode, search) in ms."""
    for length in (WARM_UP_SECONDS, seconds):
        times: list[float] = []
        parts: list[tuple[float, float]] = []
        until = time.perf_counter() + length
        starts = [cycle(bodies[number * 17 % len(bodies) :] + bodies) for number in range(users)]
        await asyncio.gather(*(user(port, each, until, times, parts) for each in starts))
    return times, parts


def main() -> None:
    """Measures and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index")
    parser.add_argument("--users", type=int, nargs="+", default=(1, 8, 32))
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--queries")
    parser.add_argument("--onnx")
    arguments = parser.parse_args()
    reader = IndexReader.open(arguments.index)
    random = np.random.default_rng(0)
    vectors = random.normal(size=(500, reader.manifest.index.spec.dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    if arguments.queries:
        with open(arguments.queries, encoding="utf-8") as file:
            texts = [line.strip() for line in file if line.strip()]
    else:
        titles = [str(title) for title in reader.products["title"].to_pylist()[:5000]]
        texts = [" ".join(titles[row].split()[:3]) for row in random.integers(0, len(titles), 500)]
    asked = {
        "vectors": [json.dumps({"vector": vector.round(5).tolist()}).encode() for vector in vectors],
        "texts": [json.dumps({"text": text}).encode() for text in texts],
    }
    console = Console(width=140)
    console.print(machine_line("fastapi", "uvicorn", "faiss-cpu", "torch"))
    console.print(command_line())
    table = Table("queries", "users", "a second", "p50 ms", "p99 ms", "encode ms", "search ms")
    with server(arguments.index, arguments.onnx) as port:
        for kind, bodies in asked.items():
            for users in arguments.users:
                times, parts = asyncio.run(load(port, bodies, users, arguments.seconds))
                middle, late = np.percentile(times, [50, 99]) * 1000
                encode, search = np.median(parts, axis=0)
                rate = f"{len(times) / arguments.seconds:,.0f}"
                table.add_row(kind, str(users), rate, f"{middle:.1f}", f"{late:.1f}", f"{encode:.2f}", f"{search:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
