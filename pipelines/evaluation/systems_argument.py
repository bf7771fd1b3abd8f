"""`--systems NAME=WHAT ...`: the systems of a comparison in short, on the command line.

in_use=nightly.yaml                                   the encoder of a job's YAML file, or of a shipped config
new=trained/encoder                                   a saved encoder
new=trained/seed0,trained/seed1                       the same encoder trained from two seeds
live=s3://shop/index                                  the published version of an index, searched as it serves
old=s3://shop/index@20261120T031500Z-54ecf43a0d36     another version of it
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from index_builder import storage
from pipelines.config.errors import ConfigError
from pipelines.config.yaml_files import read_config_file

OPTION = "--systems"
_VERSION = re.compile(r"^(.+)@(\d{8}T\d{6}Z-[0-9a-f]{12})$")


def expand_systems(argv: Sequence[str]) -> list[str]:
    """Arguments with `--systems NAME=WHAT ...` written out as the YAML list that `systems` is.

    A list given as YAML stays as it is.

    Raises:
        ConfigError: A system has no name, or what it names is neither a config, a saved encoder nor an index.
    """
    expanded: list[str] = []
    position = 0
    while position < len(argv):
        argument = argv[position]
        position += 1
        if argument != OPTION and not argument.startswith(f"{OPTION}="):
            expanded.append(argument)
            continue
        given = [argument.partition("=")[2]] if "=" in argument else []
        while position < len(argv) and not argv[position].startswith("--"):
            given.append(argv[position])
            position += 1
        is_yaml = len(given) == 1 and given[0].lstrip().startswith("[")
        expanded += [OPTION, given[0] if is_yaml else json.dumps([_system(text) for text in given])]
    return expanded


def _system(text: str) -> dict[str, Any]:
    name, equals, what = text.partition("=")
    if not equals or not name or not what:
        raise ConfigError(
            f"{OPTION}: found {text!r}, expected NAME=WHAT, where WHAT is a job's config, a saved encoder or an index"
        )
    version = _VERSION.match(what)
    if version:
        return {"name": name, "index": version[1], "version": version[2]}
    encoders = [_encoder(name, one) for one in what.split(",")]
    if len(encoders) > 1:
        if None in encoders:
            raise ConfigError(f"{OPTION} {name}: found an index among several, expected encoders of one kind")
        return {"name": name, "encoders": encoders}
    return {"name": name, "index": what} if encoders[0] is None else {"name": name, "encoder": encoders[0]}


def _encoder(name: str, what: str) -> dict[str, Any] | None:
    """The `encoder:` section that a name stands for; None for an index."""
    if what.endswith((".yaml", ".yml")):
        return _section(name, what)
    if _is_saved_encoder(what):
        return {"uri": what}
    if _exists(storage.join(what, "CURRENT")):
        return None
    try:
        return _section(name, what)
    except ConfigError as error:
        raise ConfigError(
            f"{OPTION} {name}={what}: found neither a saved encoder (encoder.json) nor an index (CURRENT) nor a config "
            f"there. {error}"
        ) from error


def _section(name: str, config: str) -> dict[str, Any]:
    section = read_config_file(config).data.get("encoder")
    if not isinstance(section, dict):
        raise ConfigError(f"{OPTION} {name}={config}: the config has no section encoder")
    return section


def _is_saved_encoder(what: str) -> bool:
    # What lies in a package is looked for with the other encoders' files, before any work.
    return what.startswith("package://") or _exists(storage.join(what, "encoder.json"))


def _exists(uri: str) -> bool:
    try:
        return storage.exists(uri)
    except storage.StorageError as error:
        raise ConfigError(f"{OPTION}: {error}") from error
