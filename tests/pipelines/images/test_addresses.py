"""Which addresses count as public, and how hosts are listed."""

from __future__ import annotations

import socket

import pytest

from pipelines.catalog.config import CatalogConfigError
from pipelines.catalog.dead_letters import PictureError, Reason
from pipelines.images.addresses import AddressRules, is_public, resolve
from pipelines.images.fetch import FetchConfig


@pytest.mark.parametrize(
    "address",
    [
        "93.184.216.34",
        "8.8.8.8",
        "2606:2800:220:1:248:1893:25c8:1946",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
        "2002:808:808::1",
    ],
)
def test_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1",
        "169.254.169.254", "100.64.0.1", "100.100.100.200", "168.63.129.16", "192.0.0.192", "198.18.0.1", "224.0.0.1",
        "239.255.255.255", "240.0.0.1", "255.255.255.255", "192.0.2.1",
        "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1",
        "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::a9fe:a9fe", "2002:a00:1::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    ],
)  # fmt: skip
def test_not_public(address: str) -> None:
    assert not is_public(address)


def test_the_neighbours_of_private_ranges_are_public() -> None:
    for address in ("9.255.255.255", "11.0.0.0", "172.15.255.255", "172.32.0.0", "192.167.255.255", "169.253.255.255"):
        assert is_public(address)


def rules(resolver=lambda host, port: ["10.0.0.7"], **values) -> AddressRules:
    return AddressRules(FetchConfig(**values), resolver)


@pytest.mark.parametrize("listed", ["db.shop.test", "DB.Shop.test.", "*.shop.test", "*.test"])
def test_a_listed_host_may_be_private(listed: str) -> None:
    assert rules(allow_private_hosts=(listed,)).addresses("db.shop.test", 80) == ["10.0.0.7"]


@pytest.mark.parametrize("listed", ["shop.test", "*.db.shop.test", "10.0.0.7", "*.hop.test"])
def test_other_hosts_may_not(listed: str) -> None:
    with pytest.raises(PictureError, match=r"10\.0\.0\.7") as caught:
        rules(allow_private_hosts=(listed,)).addresses("db.shop.test", 80)
    assert caught.value.reason == Reason.host_not_allowed


def test_a_host_without_addresses_is_unknown() -> None:
    with pytest.raises(socket.gaierror):
        rules(lambda host, port: []).addresses("db.shop.test", 80)


def test_the_systems_resolver() -> None:
    assert resolve("127.0.0.1", 80) == ["127.0.0.1"]
    for name in ("no-such-host.invalid", "a" * 64 + ".test", "a..test"):
        with pytest.raises(socket.gaierror):
            resolve(name, 80)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("threads", 0, "at least 1"),
        ("max_attempts", 0, "at least 1"),
        ("max_bytes", -1, "at least 1"),
        ("timeout_seconds", 0.0, "above 0"),
        ("max_redirects", -1, "at least 0"),
        ("allowed_schemes", ("https://",), "without '://'"),
        ("allowed_hosts", "cdn.shop.test", "a list"),
        ("allowed_hosts", ("https://cdn.shop.test",), "host names"),
        ("allow_private_hosts", ("10.0.0.0/8",), "host names"),
    ],
)
def test_a_wrong_value_is_named(key: str, value: object, words: str) -> None:
    with pytest.raises(CatalogConfigError, match=rf"fetch\.{key}.*{words}") as caught:
        FetchConfig(**{key: value})
    assert isinstance(caught.value, ValueError)
