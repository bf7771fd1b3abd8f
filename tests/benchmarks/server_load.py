"""What the server answers a second, and how late: users in a process of their own, each with one connection.

    python -m tests.benchmarks.server_load INDEX [--users 1 8 32] [--seconds 5] [--queries FILE] [--onnx FOLDER]
        [--beside CHECKOUT --rounds 5]

INDEX is an address with a published version and its query encoder. Queries go over HTTP/1.1 to loopback: vectors
(drawn), and texts (FILE, one a line; default: words drawn from the products' titles). First as fast as the server
answers: each user asks again once it has an answer. Then at a given rate, as shoppers do who do not wait for each other
(`--rates 500 60`, vectors and texts): the arrivals are drawn (Poisson), and a query's time begins when it arrives,
whether or not a user is free to ask it. `encode` and `search` are the medians that the answers tell, apart from HTTP;
CPU is what the server's process used for an answer, and users' CPU what the process of the users did.

`--beside` starts the server of another checkout too, and asks both in turns, `--rounds` times: on a busy machine only
their ratio says anything.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
import psutil
import uvloop
from rich.console import Console
from rich.table import Table

from index_builder import IndexReader
from tests.benchmarks.machine import command_line, machine_line

WARM_UP_SECONDS = 1.0


@contextmanager
def server(
    index: str, onnx: str | None, *options: str, checkout: str | None = None
) -> Iterator[tuple[int, psutil.Process]]:
    """The server in a process of its own, of this code or of another checkout; gives its port, and the process."""
    command = [sys.executable, "-m", "pipelines.serve", "--index", index, "--server.port", "0", *options]
    command += ["--server.onnx_uri.main", onnx] if onnx else []
    environment = os.environ | ({"PYTHONPATH": checkout} if checkout else {})
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=checkout, env=environment)
    try:
        for line in process.stderr or ():
            if found := re.search(r"listening at http://127\.0\.0\.1:(\d+)", line):
                break
        else:
            raise SystemExit("the server did not start")
        # Its log goes on; nobody reads it here, and a full pipe would stop it.
        subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
        yield int(found[1]), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


@dataclass
class Measured:
    """Answers of one load: seconds of each, and (encode, search) in ms as they tell them; all of the load in seconds,
    and CPU seconds of the server and of the users.
    """

    times: list[float] = field(default_factory=list)
    parts: list[tuple[float, float]] = field(default_factory=list)
    seconds: float = 0.0
    server_cpu: float = 0.0
    users_cpu: float = 0.0

    def cells(self) -> list[str]:
        """Of a table."""
        answers = len(self.times)
        middle, late, latest = np.percentile(self.times, [50, 99, 100]) * 1000
        encode, search = np.median(self.parts, axis=0)
        found = [f"{answers / self.seconds:,.0f}", f"{middle:.1f}", f"{late:.1f}", f"{latest:.0f}"]
        cpu = (f"{1000 * used / answers:.2f}" for used in (self.server_cpu, self.users_cpu))
        return [*found, f"{encode:.2f}", f"{search:.2f}", *cpu]


class User:
    """One connection, one query at a time."""

    def __init__(self, port: int, measured: Measured) -> None:
        self._port, self._measured = port, measured

    async def __aenter__(self) -> User:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._writer.close()

    async def ask(self, body: bytes, arrived: float) -> None:
        """Asks one query, and counts its time since it arrived."""
        head = b"POST /search HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self._writer.write(head % len(body) + body)
        answered = await self._reader.readuntil(b"\r\n\r\n")
        length = int(re.search(rb"content-length: (\d+)", answered, re.IGNORECASE)[1])  # type: ignore[index]
        found = await self._reader.readexactly(length)
        self._measured.times.append(time.perf_counter() - arrived)
        if not answered.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"{answered.decode()}{found.decode()}")
        encode, search = re.search(rb'"encode_ms":([\d.]+),"search_ms":([\d.]+)', found).groups()  # type: ignore[union-attr]
        self._measured.parts.append((float(encode), float(search)))


async def asked_again(
    port: int, bodies: Iterator[bytes], users: int, seconds: float, measured: Measured | None = None
) -> Measured:
    """So many users, each of whom asks again once it has an answer."""
    measured = measured or Measured()
    until = time.perf_counter() + seconds

    async def go_on() -> None:
        async with User(port, measured) as user:
            while (now := time.perf_counter()) < until:
                await user.ask(next(bodies), now)

    await asyncio.gather(*(go_on() for _ in range(users)))
    return measured


async def at_rate(
    port: int, bodies: Iterator[bytes], users: int, seconds: float, rate: float, measured: Measured | None = None
) -> Measured:
    """So many queries a second, over so many connections."""
    measured = measured or Measured()
    random = np.random.default_rng(1)
    arrivals: asyncio.Queue[float] = asyncio.Queue()

    async def serve_arrivals() -> None:
        async with User(port, measured) as user:
            while True:
                arrived = await arrivals.get()
                if arrived < 0:
                    return
                await user.ask(next(bodies), arrived)

    tasks = [asyncio.create_task(serve_arrivals()) for _ in range(users)]
    start = following = time.perf_counter()
    while following < start + seconds:
        await asyncio.sleep(max(0.0, following - time.perf_counter()))
        arrivals.put_nowait(following)
        following += random.exponential(1 / rate)
    for _ in tasks:
        arrivals.put_nowait(-1.0)
    await asyncio.gather(*tasks)
    return measured


def load(
    port: int,
    process: psutil.Process,
    asked: Iterator[bytes],
    users: int,
    seconds: float,
    rate: float | None,
    measured: Measured,
) -> None:
    """One load after a warm-up, added to what was measured."""
    uvloop.run(asked_again(port, asked, users, WARM_UP_SECONDS))
    before, mine, began = sum(process.cpu_times()[:2]), time.process_time(), time.perf_counter()
    if rate is None:
        uvloop.run(asked_again(port, asked, users, seconds, measured))
    else:
        uvloop.run(at_rate(port, asked, users, seconds, rate, measured))
    measured.seconds += time.perf_counter() - began
    measured.server_cpu += sum(process.cpu_times()[:2]) - before
    measured.users_cpu += time.process_time() - mine


def main() -> None:
    """Measures and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index")
    parser.add_argument("--users", type=int, nargs="+", default=(1, 8, 32))
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rates", type=float, nargs=2, default=(500.0, 60.0), metavar=("VECTORS", "TEXTS"))
    parser.add_argument("--queries")
    parser.add_argument("--onnx")
    parser.add_argument("--beside", metavar="CHECKOUT")
    parser.add_argument("--rounds", type=int, default=1)
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
    console.print(
        machine_line("fastapi", "uvicorn", "faiss-cpu", "torch", *(["onnxruntime"] if arguments.onnx else []))
    )
    console.print(command_line())
    table = Table(
        "queries", "users", "asked a second", "answered", "p50 ms", "p99", "max", "encode ms", "search ms", "CPU ms",
        "users' CPU", *(["checkout"] if arguments.beside else []),
    )  # fmt: skip
    most = max(arguments.users)
    loads = [(kind, users, None) for kind in asked for users in arguments.users]
    loads += [(kind, most, rate) for kind, rate in zip(asked, arguments.rates, strict=True)]
    with ExitStack() as stack:
        checkouts = [None, *([arguments.beside] if arguments.beside else [])]
        servers = [
            stack.enter_context(server(arguments.index, arguments.onnx, checkout=checkout)) for checkout in checkouts
        ]
        for kind, users, rate in sorted(loads, key=lambda each: each[0], reverse=True):
            found = [Measured() for _ in servers]
            bodies = itertools.cycle(asked[kind])
            for _ in range(arguments.rounds):
                for (port, process), measured in zip(servers, found, strict=True):
                    load(port, process, bodies, users, arguments.seconds, rate, measured)
            for checkout, measured in zip(checkouts, found, strict=True):
                name = [checkout or "this"] if arguments.beside else []
                given = "as answered" if rate is None else f"{rate:g}"
                is_last = rate is not None and measured is found[-1]
                table.add_row(kind, str(users), given, *measured.cells(), *name, end_section=is_last)
    console.print(table)


if __name__ == "__main__":
    main()
