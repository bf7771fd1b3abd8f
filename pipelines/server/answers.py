"""Requests become query vectors and searches, and what is found becomes JSON.

Nothing here knows of HTTP: what cannot be answered is a `RequestError` with the status that says so best.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import pyarrow as pa

from encoders import ImageDecodingError, ImagePreprocessing, image_pixels
from encoders.errors import EncoderError
from encoders.query_batches import BaseQueryEncoder
from index_builder import SearchResult, publish
from index_builder.errors import FilterError, IndexBuilderError, VersionNotFoundError
from index_builder.explanation import rows_of
from pipelines.catalog.dead_letters import ImageError
from pipelines.images.fetch import ImageFetcher
from pipelines.published.answers import explained
from pipelines.published.json_values import plain_value
from pipelines.server.batching import Batcher
from pipelines.server.config import ServerJobConfig
from pipelines.server.facets import Facet, facets_of
from pipelines.server.metrics import ServerMetrics
from pipelines.server.schema import Hit, IndexInfo, SearchAnswer, SearchRequest, VersionInfo
from pipelines.server.served import ServedIndex, ServedVersion


class RequestError(Exception):
    """A request that is not answered: HTTP status, a word for programs, a sentence for people.

    Remedy: Correct the request as the sentence says; of 503, wait or publish again.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class _ToEncode(NamedTuple):
    encoder: BaseQueryEncoder
    text: str | None
    pixels: np.ndarray | None
    image_weight: float | None


@dataclass(frozen=True, eq=False)
class _Search:
    """What the searches of one batch share; the vectors are their own."""

    served: ServedVersion
    k: int
    offset: int
    filter: str | None
    group: bool | str | None
    columns: tuple[str, ...]

    def key(self) -> Hashable:
        return id(self.served), self.k, self.offset, self.filter, self.group, self.columns


class _Found(NamedTuple):
    """What one search of a batch found: its number there, and the values of the columns of each answer."""

    result: SearchResult
    number: int
    columns: dict[str, list[Any]]


class Answers:
    """Answers requests. Encoding and searching run on threads of their own, in batches (see `Batcher`)."""

    def __init__(self, config: ServerJobConfig, indexes: dict[str, ServedIndex], metrics: ServerMetrics) -> None:
        self._config, self.indexes, self._metrics = config, indexes, metrics
        most = config.server.max_batch
        # One core answers requests; the others encode and search. A short search shared out over cores takes longer
        # than on one, and several times the CPU time while others want these cores.
        cores = max(1, len(os.sched_getaffinity(0)) - 1)
        self._encoding: Batcher[_ToEncode, np.ndarray] = Batcher(
            _encode, most=most, name="encode", cores=cores, observe=partial(metrics.batch, "encode")
        )
        self._searching: Batcher[tuple[_Search, np.ndarray], _Found] = Batcher(
            _search, most=most, name="search", threads=cores, cores=1, observe=partial(metrics.batch, "search")
        )
        self._fetching: Batcher[str, bytes] = Batcher(self._fetch, most=1, name="fetch", threads=8)
        self._looking: Batcher[Any, Any] = Batcher(
            lambda _, items: [item() for item in items], most=1, name="look", threads=2
        )
        self._fetcher = ImageFetcher(config.fetch)
        root = config.server.image_root
        self._pictures = ImageFetcher(config.fetch, root) if root is not None else self._fetcher

    def close(self) -> None:
        for batcher in (self._encoding, self._searching, self._fetching, self._looking):
            batcher.close()
        self._fetcher.close()
        self._pictures.close()

    def index(self, name: str | None) -> ServedIndex:
        """The index of that name, by default the first; RequestError where there is none."""
        if name is None:
            return next(iter(self.indexes.values()))
        if name not in self.indexes:
            raise RequestError(404, "unknown_index", f"no index {name!r} here; there are {', '.join(self.indexes)}")
        return self.indexes[name]

    async def served(self, index: str | None, version: str | None) -> tuple[ServedIndex, ServedVersion]:
        """An index and one version of it, opened where it is not yet."""
        found = self.index(index)
        try:
            if version is None or version == found.current.version:
                return found, found.current
            return found, await self._looking.submit(None, partial(found.version, version))
        except VersionNotFoundError as error:
            raise RequestError(404, "unknown_version", f"index {found.name} has no version {version!r}") from error
        except (IndexBuilderError, EncoderError) as error:
            raise RequestError(503, "unusable_version", f"version {version!r} cannot be opened: {error}") from error

    async def search(self, request: SearchRequest) -> SearchAnswer:
        """Answers one query; RequestError where it cannot be answered."""
        limits = self._config.server
        if request.k > limits.max_k or request.offset > limits.max_offset:
            raise RequestError(
                422, "too_many", f"k is {request.k} and offset {request.offset}: expected at most {limits.max_k} and "
                f"{limits.max_offset} (server.max_k, server.max_offset)"
            )  # fmt: skip
        index, served = await self.served(request.index, request.version)
        started = time.perf_counter()
        vector, own_rows = await self._vector(request, served)
        encoded = time.perf_counter()
        # A product is not like itself: it is left out of the whole sequence, of which this page is a slice.
        k, offset = request.k + 1, request.offset
        k, offset = (k + offset + 1, 0) if own_rows else (k, offset)
        search = _Search(served, k, offset, request.filter, request.group, self._columns(served, request.columns))
        try:
            found = await self._searching.submit(search.key(), (search, vector))
        except FilterError as error:
            raise RequestError(422, "filter", str(error)) from error
        except IndexBuilderError as error:
            raise RequestError(422, "unusable_query", str(error)) from error
        searched = time.perf_counter()
        self._metrics.part("encode", encoded - started)
        self._metrics.part("search", searched - encoded)
        hits = self._hits(index, served, found, request, own_rows)
        if request.explain:
            await self._looking.submit(None, partial(_explain, hits[: request.k], served, found))
        return {
            "index": index.name,
            "version": served.version,
            "encoder_fingerprint": served.reader.manifest.encoder.fingerprint,
            "hits": hits[: request.k],
            "more": len(hits) > request.k,
            "encode_ms": round(1000 * (encoded - started), 3),
            "search_ms": round(1000 * (searched - encoded), 3),
        }

    async def _vector(self, request: SearchRequest, served: ServedVersion) -> tuple[np.ndarray, frozenset[int]]:
        """The query's vector float32 `[D]`, and the rows of the product that was asked with."""
        asked = [
            name
            for name, there in (
                ("vector", request.vector is not None),
                ("product_id", request.product_id is not None),
                ("text, image or image_url", bool((request.text or "").strip() or request.image or request.image_url)),
            )
            if there
        ]
        if len(asked) != 1:
            found = " and ".join(asked) or ("an empty text" if request.text is not None else "nothing")
            raise RequestError(
                422, "query", f"expected one of text (with or without a picture), image, vector and product_id: {found}"
            )
        manifest = served.reader.manifest
        given, dim = request.encoder_fingerprint, manifest.index.spec.dim
        if given is not None and given != manifest.encoder.fingerprint:
            raise RequestError(
                409, "other_encoder", f"the query is of encoder {given}, and version {served.version} was made by "
                f"{manifest.encoder.fingerprint}: encode it again"
            )  # fmt: skip
        if request.vector is not None:
            with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused
                vector = np.asarray(request.vector, np.float32)
            if len(vector) != dim or not np.isfinite(vector).all():
                raise RequestError(422, "vector", f"expected {dim} finite numbers, found {len(vector)} numbers")
            return vector, frozenset()
        if request.product_id is not None:
            return await self._looking.submit(None, partial(_vector_of, served, request.product_id))
        return await self._encoded(request, served), frozenset()

    async def _encoded(self, request: SearchRequest, served: ServedVersion) -> np.ndarray:
        encoder, text = served.encoder, request.text if request.text and request.text.strip() else None
        if encoder is None:
            raise RequestError(422, "no_encoder", f"only vectors and products can be asked with: {served.no_encoder}")
        limit = self._config.server.max_text_characters
        if text is not None and len(text) > limit:
            raise RequestError(422, "text", f"the text has {len(text):,} characters: expected at most {limit:,}")
        if request.image is not None and request.image_url is not None:
            raise RequestError(422, "query", "expected image or image_url, found both")
        has_image = request.image is not None or request.image_url is not None
        for kind, there, takes in (
            ("texts", text is not None, encoder.accepts_text),
            ("pictures", has_image, encoder.accepts_images),
        ):
            if there and not takes:
                raise RequestError(422, "query", f"the {encoder.model} encoder of {served.version} takes no {kind}")
        picture = request.image
        if request.image_url is not None:
            picture = await self._fetching.submit(None, request.image_url)
        pixels = None
        if picture is not None:
            library: Literal["torch", "numpy"] = "torch" if served.by_torch else "numpy"
            decode = partial(_decoded, picture, encoder, self._config.decode.max_pixels, library)
            try:
                pixels = await self._looking.submit(None, decode)
            except ImageDecodingError as error:
                raise RequestError(422, "image", f"expected a picture (JPEG, PNG, WebP ...): {error}") from error
        weight = request.image_weight if text is not None and has_image else None
        return await self._encoding.submit((id(encoder), weight), _ToEncode(encoder, text, pixels, weight))

    def _fetch(self, _: Hashable, urls: list[str]) -> list[bytes]:
        (url,) = urls
        if not url.lower().startswith(("http://", "https://")):
            raise RequestError(422, "image_url", "expected an address that begins with http:// or https://")
        try:
            return [self._fetcher.fetch(url).data]
        except ImageError as error:
            raise RequestError(422, "image_url", f"{error.reason}: {error.detail}") from error

    def _columns(self, served: ServedVersion, asked: list[str] | None) -> tuple[str, ...]:
        """The columns to look up: those that are sent, and last the one of pictures where it is looked at."""
        names = served.shown_names
        if asked is not None:
            if unknown := [name for name in asked if name not in served.column_names]:
                raise RequestError(422, "columns", f"no column {unknown[0]!r}; there are {', '.join(names)}")
            names = tuple(asked)
        picture = None if served.thumbnails is not None else served.picture_column(self._config.server.image_field)
        return tuple(dict.fromkeys([*names, *([picture] if picture else [])]))

    def _hits(
        self,
        index: ServedIndex,
        served: ServedVersion,
        found: _Found,
        request: SearchRequest,
        own_rows: frozenset[int],
    ) -> list[Hit]:
        result, number, columns = found
        names = served.shown_names if request.columns is None else request.columns
        addresses = columns.get(served.picture_column(self._config.server.image_field) or "")
        rows, scores = result.rows[number].tolist(), result.scores[number].tolist()
        places: Sequence[int] = range(len(result.product_ids[number]))
        if own_rows:
            places = [place for place in places if rows[place] not in own_rows][request.offset :]
        hits: list[Hit] = []
        for rank, place in enumerate(places, start=request.offset + 1):
            hit: Hit = {
                "rank": rank,
                "product_id": result.product_ids[number][place],
                "score": round(scores[place], 6),
                "row": rows[place],
                "columns": {name: columns[name][place] for name in names},
            }
            if result.members is not None:
                hit["members"] = int(result.members[number, place])
            address = addresses[place] if addresses else None
            if (picture := self._picture_address(index, served, address, rows[place])) is not None:
                hit["image"] = picture
            hits.append(hit)
        return hits

    def _picture_address(self, index: ServedIndex, served: ServedVersion, address: Any, row: int) -> str | None:
        """Where a browser gets the picture: the version's thumbnails, else the shop itself, else this server from below
        `image_root`.
        """
        if served.thumbnails is not None:
            return f"/thumbnails/{index.name}/{served.version}/{row}"
        if not isinstance(address, str) or not address.strip():
            return None
        if address.lower().startswith(("https://", "http://")):
            return address
        return f"/pictures/{index.name}/{served.version}/{row}" if self._config.server.image_root is not None else None

    async def picture(self, index: str, version: str, row: int) -> bytes:
        """A product's picture file, from below `server.image_root`."""
        _, served = await self.served(index, version)
        column = served.picture_column(self._config.server.image_field)
        if self._config.server.image_root is None or column is None or not 0 <= row < served.reader.products.num_rows:
            raise RequestError(404, "picture", "there is no such picture")
        address = served.reader.products[column][row].as_py()
        if not isinstance(address, str) or "://" in address or address.startswith("//"):
            raise RequestError(404, "picture", "there is no such picture")
        try:
            return await self._looking.submit(None, lambda: self._pictures.fetch(address).data)
        except ImageError as error:
            raise RequestError(404, "picture", f"{error.reason}") from error

    async def thumbnail(self, index: str | None, version: str | None, row: int | None, product_id: str = "") -> bytes:
        """The small picture of a row, or of a product, as a WebP file."""
        _, served = await self.served(index, version)

        def look() -> bytes | None:
            found = row
            if found is None:
                rows = rows_of(served.reader.products, product_id)
                found = int(rows[0]) if len(rows) else -1
            return None if served.thumbnails is None else served.thumbnails.get(found)

        data = await self._looking.submit(None, look)
        if data is None:
            raise RequestError(404, "picture", "there is no such picture")
        return data

    async def facets(self, index: str | None, version: str | None) -> list[Facet]:
        """What the answers of a version can be filtered by."""
        _, served = await self.served(index, version)
        return await self._looking.submit(None, partial(facets_of, served))

    async def versions(self, index: str | None) -> list[VersionInfo]:
        """The versions of an index, newest first."""
        return await self._looking.submit(None, partial(_versions, self.index(index)))

    def info(self) -> list[IndexInfo]:
        """The indexes, each with the version that is served."""
        return [_info(index) for index in self.indexes.values()]


def _encode(_: Hashable, items: list[_ToEncode]) -> list[np.ndarray]:
    texts, pixels = [item.text for item in items], [item.pixels for item in items]
    images = pixels if any(image is not None for image in pixels) else None
    return list(items[0].encoder.encode(texts=texts, images=images, image_weight=items[0].image_weight))


def _decoded(data: bytes, encoder: BaseQueryEncoder, max_pixels: int, library: Literal["torch", "numpy"]) -> np.ndarray:
    """The pixels that the encoder sees, uint8 `[S, S, 3]`: decoded as a product's picture is."""
    preprocessing = cast(ImagePreprocessing, encoder.preprocessing)  # asked only where images are accepted
    pixels = image_pixels(data, preprocessing, max_pixels=max_pixels, library=library)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def _search(_: Hashable, items: list[tuple[_Search, np.ndarray]]) -> list[_Found]:
    search = items[0][0]
    vectors = np.stack([vector for _, vector in items])
    found = search.served.reader.search(vectors, search.k, search.filter, offset=search.offset, group=search.group)
    values = _values(found, search.columns)
    ends = np.cumsum([0, *map(len, found.product_ids)]).tolist()
    return [
        _Found(found, number, {name: of_all[start:end] for name, of_all in values.items()})
        for number, (start, end) in enumerate(itertools.pairwise(ends))
    ]


def _values(found: SearchResult, names: Sequence[str]) -> dict[str, list[Any]]:
    """Columns of all that a batch found, as JSON can say them: looked up at once, which costs little more than for one
    of its queries.
    """
    if not names:
        return {}
    table = found.lookup.take_columns(found.rows[found.rows >= 0], names)
    columns = dict(zip(names, table.columns, strict=True))
    return {
        name: column.to_pylist() if pa.types.is_string(column.type) else [*map(plain_value, column.to_pylist())]
        for name, column in columns.items()
    }


def _explain(hits: list[Hit], served: ServedVersion, found: _Found) -> None:
    result, number = found.result, found.number
    parts = served.encoder.parts if served.encoder is not None else None
    places = {int(row): place for place, row in enumerate(result.rows[number])}
    for hit in hits:
        hit["explanation"] = explained(result.explain(places[hit["row"]], number, parts))


def _vector_of(served: ServedVersion, product_id: str) -> tuple[np.ndarray, frozenset[int]]:
    """The vector of a product, of the last of several, and its rows."""
    rows = rows_of(served.reader.products, product_id)
    if not len(rows):
        raise RequestError(404, "unknown_product", f"version {served.version} has no product {product_id!r}")
    try:
        return served.reader.vectors([int(rows[-1])])[0], frozenset(rows.tolist())
    except IndexBuilderError as error:
        raise RequestError(422, "unusable_query", f"no products like {product_id!r}: {error}") from error


def _versions(index: ServedIndex) -> list[VersionInfo]:
    found = []
    for version in reversed(publish.list_versions(index.uri)):
        try:
            manifest = publish.read_manifest(index.uri, version)
        except VersionNotFoundError:
            continue  # pruned since it was listed
        except IndexBuilderError as error:
            raise RequestError(503, "unusable_version", f"version {version!r} cannot be read: {error}") from error
        found.append(
            VersionInfo(
                version=manifest.version,
                created_utc=manifest.created_utc,
                products=manifest.catalog.products,
                encoder_fingerprint=manifest.encoder.fingerprint,
                is_current=manifest.version == index.current.version,
            )
        )
    return found


def _info(index: ServedIndex) -> IndexInfo:
    served = index.current
    manifest, products, encoder = served.reader.manifest, served.reader.products, served.encoder
    return IndexInfo(
        name=index.name,
        version=served.version,
        created_utc=manifest.created_utc,
        products=manifest.catalog.products,
        encoder=manifest.encoder.model,
        encoder_fingerprint=manifest.encoder.fingerprint,
        takes_text=encoder is not None and encoder.accepts_text,
        takes_images=encoder is not None and encoder.accepts_images,
        group_field=manifest.catalog.group_field,
        recall=manifest.recall.value,
        recall_k=manifest.recall.k,
        factory=manifest.index.factory,
        columns={field.name: str(field.type) for field in products.schema if field.name != "product_id"},
        without_encoder=served.no_encoder,
    )
