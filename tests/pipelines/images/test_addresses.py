"""Which addresses count as public, and how hosts are listed."""

from __future__ import annotations

import socket

import pytest

from pipelines.catalog.dead_letters import ImageError, Reason
from pipelines.images.addresses import AddressRules, WebAddress, is_public, resolve
from pipelines.images.config import FetchConfig


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
    config = FetchConfig(**values)
    return AddressRules(config.allowed_schemes, config.allowed_hosts, config.allow_private_hosts, resolver)


@pytest.mark.parametrize("listed", ["db.shop.test", "DB.Shop.test.", "*.shop.test", "*.test"])
def test_a_listed_host_may_be_private(listed: str) -> None:
    assert rules(allow_private_hosts=(listed,)).addresses("db.shop.test", 80) == ["10.0.0.7"]


@pytest.mark.parametrize("listed", ["shop.test", "*.db.shop.test", "10.0.0.7", "*.hop.test"])
def test_other_hosts_may_not(listed: str) -> None:
    with pytest.raises(ImageError, match=r"10\.0\.0\.7") as caught:
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
    ("text", "origin", "shown"),
    [
        ("HTTP://CDN.Shop.Test/A b.jpg", ("http", "cdn.shop.test", 80), "http://cdn.shop.test/A%20b.jpg"),
        ("https://user:secret@shop.test./?key=secret", ("https", "shop.test", 443), "https://shop.test/?..."),
        ("https://shop.test:8443", ("https", "shop.test", 8443), "https://shop.test:8443/"),
        ("http://[::1]:81/a", ("http", "::1", 81), "http://[::1]:81/a"),
        ("http://schön.test/ü", ("http", "xn--schn-7qa.test", 80), "http://xn--schn-7qa.test/%C3%BC"),
        ("http://a.test\\@b.test/", ("http", "a.test", 80), "http://a.test/@b.test/"),  # as browsers have it
        ("https:/shop.test/a.jpg", ("https", "shop.test", 443), "https://shop.test/a.jpg"),
        ("http:\\\\shop.test\\m\\a b.jpg ", ("http", "shop.test", 80), "http://shop.test/m/a%20b.jpg"),
        ("http://shop.test/a?b=c\\d", ("http", "shop.test", 80), "http://shop.test/a?..."),
        ("http://127.0.0.1#@evil.test/", ("http", "127.0.0.1", 80), "http://127.0.0.1/"),
    ],
)
def test_what_is_checked_is_what_is_asked_for(text: str, origin: tuple[str, str, int], shown: str) -> None:
    address = WebAddress.parse(text)
    assert (address.origin, address.shown) == (origin, shown)


@pytest.mark.parametrize(
    "text", ["http://", "http:///a", "http://a:99999/", "http://a:-1/", "http://[::1", "http://.", "\ud800://a"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ImageError) as caught:
        WebAddress.parse(text)
    assert caught.value.stage == "fetch"
