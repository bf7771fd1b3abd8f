"""What is served: the published version of each index with the query encoder that searches it, and versions asked for.

A version and its encoder are one object that is replaced as a whole, so no query ever meets vectors of another encoder.
A request keeps the one that it began with.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from encoders import load_onnx_query_encoder
from encoders.errors import EncoderError
from encoders.query_batches import BaseQueryEncoder
from index_builder import IndexReader, tags
from index_builder.errors import IndexBuilderError, VersionNotFoundError
from index_builder.manifest import QUERY_ENCODER_FOLDER
from index_builder.publish import pointed_version
from pipelines.images.thumbnails import Thumbnails, open_thumbnails
from pipelines.server.config import ServerConfig

log = logging.getLogger(__name__)

_PICTURES = ("image", "image_url", "image_link", "picture", "photo")


@dataclass(frozen=True, eq=False)
class ServedVersion:
    """One version, open, with its query encoder; `encoder` is None where there is none, `no_encoder` says why."""

    reader: IndexReader
    encoder: BaseQueryEncoder | None
    no_encoder: str = ""
    by_torch: bool = True
    thumbnails: Thumbnails | None = None

    @property
    def version(self) -> str:
        return self.reader.manifest.version

    def picture_column(self, asked: str | None) -> str | None:
        """The column that holds the address of a product's picture; None without one."""
        wanted = _PICTURES if asked is None else (asked,)
        return next((name for name in wanted if name in self.column_names), None)

    @cached_property
    def column_names(self) -> tuple[str, ...]:
        """Of the products: `product_id`, then what is shown and filtered by."""
        return tuple(self.reader.products.column_names)

    @cached_property
    def shown_names(self) -> tuple[str, ...]:
        """The columns without the id: what an answer shows of a product."""
        return tuple(name for name in self.column_names if name != "product_id")


class ServedIndex:
    """An index by name. `current` is what requests get that name no version."""

    def __init__(self, name: str, config: ServerConfig) -> None:
        self.name = name
        self.uri, _, tag = config.indexes[name].partition("#")
        self._tag = tag or None
        self._config = config
        self._onnx = config.onnx_uri.get(name)
        self._by_onnx = self._onnx is not None and config.query_encoder != "torch"
        self._kept: OrderedDict[str, ServedVersion] = OrderedDict()
        self._opening = threading.Lock()
        self.failures = 0
        self.current = self._open(pointed_version(self.uri, self._tag))

    def refresh(self) -> bool:
        """Opens the version that is published now, if it is another one, and serves it once it has answered; whether
        it was. After an error the version of before goes on being served.
        """
        try:
            published = pointed_version(self.uri, self._tag)
            if published == self.current.version:
                return False
            with self._opening:
                opened = self._kept.pop(published, None) or self._open(published)
            self._answer_once(opened)
        except (IndexBuilderError, EncoderError, OSError) as error:
            self.failures += 1
            log.warning("index %s: still serving %s: %s", self.name, self.current.version, error)
            return False
        log.info("index %s: serving %s instead of %s", self.name, published, self.current.version)
        before, self.current = self.current, opened
        with self._opening:  # its pictures and further pages are still asked for, though its files may be pruned
            self._keep(before)
        return True

    def version(self, version: str | None) -> ServedVersion:
        """The version of that id or tag, by default the published one.

        Raises:
            VersionNotFoundError: there is no such version.
            VerificationError: its files are not what its manifest says.
        """
        if version is None or version == self.current.version:
            return self.current
        version = tags.resolved(self.uri, version)
        if version == self.current.version:
            return self.current
        with self._opening:
            found = self._kept.get(version) or self._open(version)
            self._keep(found)
        return found

    def _keep(self, served: ServedVersion) -> None:
        """Holds a version open as the latest of those that are."""
        self._kept[served.version] = served
        self._kept.move_to_end(served.version)
        while len(self._kept) > self._config.versions_kept:
            self._kept.popitem(last=False)

    def _open(self, version: str) -> ServedVersion:
        reader = IndexReader.open(self.uri, version=version)
        encoder, why = self._encoder(reader)
        pictures = open_thumbnails(self.uri, reader.manifest)
        return ServedVersion(reader, encoder, why, by_torch=not self._by_onnx, thumbnails=pictures)

    def _encoder(self, reader: IndexReader) -> tuple[BaseQueryEncoder | None, str]:
        fingerprint = reader.manifest.encoder.fingerprint
        if self._by_onnx and self._onnx is not None:
            encoder: BaseQueryEncoder = load_onnx_query_encoder(self._onnx)
            if encoder.fingerprint == fingerprint:
                return encoder, ""
            return None, (
                f"the graphs at server.onnx_uri.{self.name} are of encoder {encoder.fingerprint}, and version "
                f"{reader.manifest.version} was made by {fingerprint}; export them again"
            )
        uri = reader.query_encoder_uri
        if uri is None:
            return None, f"version {reader.manifest.version} was made of vectors, without a query encoder"
        before = getattr(self, "current", None)
        if (
            before is not None
            and before.encoder is not None
            and _encoder_files(before.reader) == _encoder_files(reader)
        ):
            return before.encoder, ""
        from encoders import load_query_encoder  # brings torch, which a server of graphs or vectors does without

        return load_query_encoder(uri, device=self._config.device), ""

    def _answer_once(self, opened: ServedVersion) -> None:
        """Lets a version answer before it is served: its first pages are read, and its encoder is warm."""
        dim = opened.reader.manifest.index.spec.dim
        vectors = np.eye(1, dim, dtype=np.float32)
        if opened.encoder is not None and opened.encoder.accepts_text:
            vectors = opened.encoder.encode(texts=["a"])
        opened.reader.search(vectors, 10)


def _encoder_files(reader: IndexReader) -> list[tuple[str, str]]:
    files = reader.manifest.files
    return sorted((entry.path, entry.sha256) for entry in files if entry.path.startswith(f"{QUERY_ENCODER_FOLDER}/"))


class Refresher:
    """A thread that asks each index's address for its published version, every so many seconds."""

    def __init__(self, indexes: dict[str, ServedIndex], seconds: float, said: Callable[[ServedIndex], object]) -> None:
        self._indexes, self._seconds, self._said = indexes, seconds, said
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="refresher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._end.set()

    def _run(self) -> None:
        while not self._end.wait(self._seconds):
            for index in self._indexes.values():
                if index.refresh():
                    self._said(index)


def open_indexes(config: ServerConfig) -> dict[str, ServedIndex]:
    """Opens every index of the config.

    Raises:
        IndexBuilderError: an index cannot be opened; it names the address.
        EncoderError: a query encoder cannot be loaded.
    """
    opened = {}
    for name in config.indexes:
        try:
            opened[name] = ServedIndex(name, config)
        except VersionNotFoundError as error:
            raise VersionNotFoundError(f"server.indexes.{name}: {error}") from error
    return opened
