"""Everything that can be known to fail before the night's work begins, checked before it begins."""

from __future__ import annotations

from dataclasses import dataclass, replace

from encoders import EncoderDescription, check_encoder
from index_builder import storage
from index_builder.spec import IndexSpec
from pipelines.catalog.sources import catalog_schema
from pipelines.catalog.stores import absolute
from pipelines.config.errors import ConfigError
from pipelines.config.schema import JobConfig
from pipelines.demo_catalog import draw_named_catalog, is_demo_address


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedJob:
    """A config whose parts were found to be there.

    Attributes:
      config: with the catalog's real address in place of `demo://N`, and the work and index addresses in full, as
        they are written down for workers and later nights.
      encoder: what the encoder says of itself.
    """

    config: JobConfig
    encoder: EncoderDescription


def check_job(config: JobConfig) -> CheckedJob:
    """Checks catalog, encoder, work and index addresses, in the order of how cheap they are to check.

    A `demo://N` catalog is drawn into `<work uri>/demo_catalog` the first time it is asked for.

    Raises:
      StorageError: the work or index address cannot be written.
      EncoderError: the encoder cannot be loaded, or lacks weights.
      SpecError: index.factory cannot be read, or does not fit the encoder's dimension.
      ConfigError: `demo://` is followed by something else than a number.
      CatalogError: the catalog is missing, empty, or has no such field.
    """
    storage.check_writable(config.work.uri)
    storage.check_writable(config.index.uri)
    encoder = check_encoder(config.encoder)
    if config.index.factory != "auto":
        IndexSpec.parse(config.index.factory, encoder.dim)
    config = replace(
        config,
        catalog=replace(config.catalog, uri=_drawn_if_demo(config)),
        work=replace(config.work, uri=absolute(config.work.uri)),
        index=replace(config.index, uri=absolute(config.index.uri)),
    )
    catalog_schema(config.catalog)
    return CheckedJob(config=config, encoder=encoder)


def _drawn_if_demo(config: JobConfig) -> str | tuple[str, ...]:
    uri = config.catalog.uri
    if not isinstance(uri, str) or not is_demo_address(uri):
        return uri
    try:
        return draw_named_catalog(uri, config.work.uri)
    except ValueError as error:
        raise ConfigError(str(error)) from error
