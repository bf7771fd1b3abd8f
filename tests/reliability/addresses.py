"""Every spelling of private addresses, by a fake resolver and fake connections: none is ever dialled or asked for.

    python -m tests.reliability.addresses --trials 10000 --seed 16

As the address of an image, as a redirect from a public host, by a name that resolves to it, by one that resolves to a
public address first and to it a moment later, and through a proxy.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
from random import Random
from typing import Any

import httpcore2

from pipelines.catalog.dead_letters import ImageError
from pipelines.images.addresses import is_public
from pipelines.images.config import FetchConfig
from pipelines.images.fetch import ImageFetcher
from tests.reliability.trials import Outcomes, run_command

ALLOWED = frozenset({"refused"})
NETWORKS = [
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
    *("192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32", "192.0.2.0/24"),
    *("::1/128", "::/128", "fe80::/10", "fc00::/7", "fec0::/10", "ff00::/8", "2001:db8::/32"),
]
PROXY = "10.9.8.7"
WAYS = ("address", "redirect", "name", "rebinding", "proxy")


def private(random: Random) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address of a range that is not public."""
    network = ipaddress.ip_network(random.choice(NETWORKS))
    return network[random.randrange(min(network.num_addresses, 1 << 32))]


def spelled(address: ipaddress.IPv4Address | ipaddress.IPv6Address, random: Random) -> str:
    """A host that some resolver, library or browser takes for the address."""
    if isinstance(address, ipaddress.IPv6Address):
        text = random.choice([str(address), address.exploded, str(address).upper()])
        return f"[{text}{random.choice(['', '', '%25lo', '%25eth0'])}]"
    number, parts = int(address), str(address).split(".")
    six = random.choice(
        [
            f"::ffff:{address}",
            f"::ffff:{number >> 16:x}:{number & 0xFFFF:x}",
            f"64:ff9b::{number >> 16:x}:{number & 0xFFFF:x}",
            f"2002:{number >> 16:x}:{number & 0xFFFF:x}::1",
            f"::{address}",
        ]
    )
    octal = ".".join(f"0{int(part):o}" for part in parts)
    hexed = ".".join(f"0x{int(part):x}" for part in parts)
    wide = str(address).translate({48 + digit: 0xFF10 + digit for digit in range(10)} | {46: 0x3002})
    percent = "".join(f"%{ord(sign):02x}" for sign in str(address))
    short = f"{parts[0]}.{number & 0xFFFFFF}"
    mixed = f"0x{int(parts[0]):x}.{parts[1]}.{int(parts[2]) << 8 | int(parts[3])}"
    return random.choice(
        [str(address), str(number), hex(number), f"0{number:o}", octal, hexed, short, mixed, f"{address}.", wide]
        + [percent, f"[{six}]", f"[{six}]", f"[{six}%25lo]", f"user:pw@{address}", f"a.test@{address}"]
    )


class Network:
    """Stands for the resolver and for all connections, and notes what is dialled and asked for."""

    def __init__(self, random: Random, target: str, location: str) -> None:
        self.dialled: list[str] = []
        self.asked: list[str] = []
        self._random, self._target, self._location, self._lookups = random, target, location, 0

    def resolve(self, host: str, port: int) -> list[str]:
        if host == "public.test":
            return ["93.184.216.34"]
        if host == "private.test":
            return self._random.choice([[self._target], ["93.184.216.34", self._target]])
        if host == "rebinding.test":
            self._lookups += 1
            return ["93.184.216.34"] if self._lookups == 1 else [self._target]
        if host == "proxy.test":
            return [PROXY]
        host = host.rstrip(".").partition("%")[0]
        try:
            return [str(ipaddress.IPv6Address(host)) if ":" in host else socket.inet_ntoa(socket.inet_aton(host))]
        except (OSError, ValueError):
            raise socket.gaierror(socket.EAI_NONAME, "unknown") from None

    def connect_tcp(self, address: str, port: int, *others: Any) -> httpcore2.NetworkStream:
        self.dialled.append(address)
        return _Answers(self, f"HTTP/1.1 302 Found\r\nLocation: {self._location}\r\nContent-Length: 0\r\n\r\n")


class _Answers(httpcore2.NetworkStream):
    def __init__(self, network: Network, answer: str) -> None:
        self._network, self._answer = network, answer.encode("utf-8", "replace")

    def read(self, max_bytes: int, timeout: Any = None) -> bytes:
        data, self._answer = self._answer[:max_bytes], self._answer[max_bytes:]
        return data

    def write(self, buffer: bytes, timeout: Any = None) -> None:
        if found := re.match(rb"[A-Z]+ (\S+)", buffer):
            self._network.asked.append(found[1].decode("latin-1"))

    def close(self) -> None:
        pass

    def start_tls(self, *others: Any, **named: Any) -> httpcore2.NetworkStream:
        return self

    def get_extra_info(self, info: str) -> Any:
        return None


class Fetchers:
    """A fetcher for each way; making one takes longer than a hundred images."""

    def __init__(self) -> None:
        self.network = Network(Random(0), "", "")
        self._made: dict[str, ImageFetcher] = {}

    def get(self, proxy: str | None) -> ImageFetcher:
        fetcher = self._made.get(proxy or "")
        if fetcher is None:
            config = FetchConfig(max_attempts=1, proxy=proxy, timeout_seconds=2.0, host_failures_before_pause=0)
            fetcher = ImageFetcher(config, resolver=lambda host, port: self.network.resolve(host, port))
            self._made[proxy or ""] = fetcher
        fetcher._http._hosts.clear()  # no connection is kept from trial to trial
        fetcher._http._backend._sockets = self.network  # type: ignore[assignment]
        return fetcher


def attempt(way: str, random: Random, fetchers: Fetchers) -> str:
    """What came of one image."""
    target = private(random)
    host = spelled(target, random)
    scheme = random.choice(["http", "http", "https", "HTTP"])
    url = f"{scheme}://{host}{random.choice(['', ':80', ':8080'])}/a.png"
    start = {
        "address": url,
        "redirect": "http://public.test/a.png",
        "name": "http://private.test/a.png",
        "rebinding": "http://rebinding.test/a.png",
        "proxy": url,
    }[way]
    network = fetchers.network = Network(
        random, str(target), url if way in ("redirect", "proxy") else "http://rebinding.test/b.png"
    )
    fetcher = fetchers.get("http://proxy.test:3128" if way == "proxy" else None)
    try:
        fetcher.fetch(start)
        outcome = "fetched"
    except ImageError as error:
        outcome = f"refused: {error.reason}"
    dialled = [each for each in network.dialled if not is_public(each) and each != (PROXY if way == "proxy" else "")]
    if dialled:
        return f"dialled: {dialled}"
    if way == "proxy" and network.asked:
        return f"asked the proxy: {network.asked}"
    return outcome


def run(trials: int, seed: int) -> Outcomes:
    """So many images over all ways."""
    logging.disable()
    outcomes = Outcomes(ALLOWED)
    fetchers = Fetchers()
    for number in range(trials):
        way = WAYS[number % len(WAYS)]
        outcomes.add(way, number, attempt(way, Random(f"{seed} {number}"), fetchers))
    return outcomes


if __name__ == "__main__":
    run_command("Private addresses", 10_000, run)
