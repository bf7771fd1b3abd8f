"""Which vector files there are, cut into units of work; and the way from a unit to its rows.

Files come in the order of their names, and so do the rows of the index.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.catalog import stores
from pipelines.catalog.errors import CatalogError
from pipelines.external_vectors.config import EmbeddingsConfig
from pipelines.external_vectors.npy_vectors import IDS_SUFFIX, cut_npy, read_npy
from pipelines.external_vectors.parquet_vectors import cut_parquet, read_parquet
from pipelines.external_vectors.units import VectorBatch, VectorFormat, VectorUnit

_SUFFIXES = {"parquet": (".parquet", ".pq"), "npy": (".npy",)}


@dataclass(frozen=True, kw_only=True, slots=True)
class VectorPlan:
    """All units, and the dimension D that the first file has."""

    units: tuple[VectorUnit, ...]
    rows: int
    dim: int


def plan_vectors(config: EmbeddingsConfig) -> VectorPlan:
    """Lists the files and cuts them into units; reads headers and footers only.

    Raises:
        CatalogError: no such files, a file of another kind, a column that is not there, or two dimensions.
    """
    units: list[VectorUnit] = []
    rows_before = 0
    dims: dict[str, int] = {}
    for file in _files(config):
        kind = _format(file.uri, config)
        cuts, dims[file.uri] = (cut_parquet if kind == "parquet" else cut_npy)(file, config)
        for stretch in cuts:
            units.append(
                VectorUnit(
                    position=len(units),
                    uri=file.uri,
                    version=f"{file.size} {file.version}",
                    format=kind,
                    stretch=stretch,
                    rows_before=rows_before,
                )
            )
        rows_before += sum(stretch.rows for stretch in cuts)
    known = {dim for dim in dims.values() if dim}
    if not rows_before or not known:
        raise CatalogError(f"embeddings.uri: expected vectors at {config.uri}, found files without a row")
    if len(known) > 1:
        told = ", ".join(f"{dim} in {next(uri for uri in dims if dims[uri] == dim)}" for dim in sorted(known))
        raise CatalogError(f"embeddings.uri: expected vectors of one dimension, found {told}")
    return VectorPlan(units=tuple(units), rows=rows_before, dim=known.pop())


def read_unit(unit: VectorUnit, config: EmbeddingsConfig, dim: int) -> Iterator[VectorBatch]:
    """The rows of a unit, `BATCH_ROWS` at a time.

    Raises:
        CatalogError: the file cannot be read, or an id file has another number of lines.
    """
    yield from (read_parquet if unit.format == "parquet" else read_npy)(unit, config, dim)


def _files(config: EmbeddingsConfig) -> list[stores.StoredFile]:
    """The vector files in the order of their names; a file that several entries name counts once."""
    uris = (config.uri,) if isinstance(config.uri, str) else config.uri or ()
    found: dict[str, stores.StoredFile] = {}
    for uri in uris:
        files, folders = ([], [uri]) if not stores.has_wildcard(uri) else stores.match(uri)
        for folder in folders:
            one = stores.describe(folder)
            files += [one] if one is not None else stores.list_folder(folder)
        named = {file.uri: file for file in files if _is_vector_file(file.uri, config)}
        if not named:
            raise CatalogError(f"embeddings.uri: expected .parquet or .npy files at {uri}, found none")
        found |= named
    return [found[uri] for uri in sorted(found)]


def _is_vector_file(uri: str, config: EmbeddingsConfig) -> bool:
    name = uri.rsplit("/", 1)[-1]
    suffixes = [ending for endings in _SUFFIXES.values() for ending in endings]
    if config.format != "auto":
        suffixes = list(_SUFFIXES[config.format])
    return name.endswith(tuple(suffixes)) and not name.startswith((".", "_")) and not name.endswith(f"{IDS_SUFFIX}.npy")


def _format(uri: str, config: EmbeddingsConfig) -> VectorFormat:
    if config.format != "auto":
        return config.format
    return "npy" if uri.endswith(_SUFFIXES["npy"]) else "parquet"
