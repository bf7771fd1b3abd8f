"""What the `fetch:` and `decode:` sections take, and what they say of values that they do not."""

from __future__ import annotations

import pytest

from pipelines.catalog.config import CatalogConfigError
from pipelines.images.config import DecodeConfig, FetchConfig


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
        ("proxy", "proxy.shop.test:3128", "http://proxy.example.com:3128"),
        ("proxy", "https://proxy.shop.test", "http://proxy.example.com:3128"),
        ("proxy", "http://proxy.shop.test/path", "http://proxy.example.com:3128"),
        ("proxy", "", "http://proxy.example.com:3128"),
    ],
)
def test_a_wrong_value_of_fetching_is_named(key: str, value: object, words: str) -> None:
    with pytest.raises(CatalogConfigError, match=rf"fetch\.{key}.*{words}") as caught:
        FetchConfig(**{key: value})
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "proxy", [None, "http://gateway", "http://gateway:3128/", "http://user:p%40ss@10.0.0.7:80", "http://[fd00::1]:8080"]
)
def test_proxies(proxy: str | None) -> None:
    assert FetchConfig(proxy=proxy).proxy == proxy


@pytest.mark.parametrize(
    "proxy",
    [
        *(
            "user:S3cret@proxy.shop.test",
            "http://user:S3cret@proxy/path",
            "http://u:S3c@S3cret@h",
            "https://u:a S3cret@h",
        ),
        *("http://u:S3cret", "u:S3cret"),
    ],
)
def test_the_login_of_a_proxy_is_in_no_message(proxy: str) -> None:
    with pytest.raises(CatalogConfigError, match=r"fetch\.proxy.* not shown") as caught:
        FetchConfig(proxy=proxy)
    assert "S3c" not in str(caught.value)
    assert "S3cret" not in repr(FetchConfig(proxy="http://user:S3cret@proxy.shop.test"))


def test_a_hidden_login_is_not_taken_for_one() -> None:
    with pytest.raises(CatalogConfigError, match="with its login"):
        FetchConfig(proxy="http://***@proxy.shop.test:3128")


@pytest.mark.parametrize(("key", "value"), [("threads", -1), ("max_pixels", 0), ("pending_images", 1)])
def test_a_wrong_value_of_decoding_is_named(key: str, value: int) -> None:
    with pytest.raises(CatalogConfigError, match=rf"decode\.{key}.*at least.*{value}"):
        DecodeConfig(**{key: value})


def test_threads_default_to_the_cores() -> None:
    assert DecodeConfig().thread_count >= 1
    assert DecodeConfig(threads=3).thread_count == 3
