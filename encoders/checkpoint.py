"""Checkpoint addresses become folders on this machine: the only place that reaches a hub or a remote store.

An address is a local folder, `package://NAME/path` (data inside an installed Python package), any fsspec URI (fetched
once into a cache), or a hub name (fetched by huggingface_hub into its own cache; HF_HUB_OFFLINE=1 keeps to that cache).
Weights are safetensors or refused: unpickling runs whatever code the file holds.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from encoders.errors import CheckpointError

CONVERT_PICKLE = (
    "Convert it once, from a source that you trust: load it with torch.load(..., weights_only=True) and write the "
    "state dict with safetensors.torch.save_file (transformers models: model.safetensors; open_clip models: "
    "open_clip_model.safetensors)"
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
_CONNECT_SECONDS = 10.0


def local_folder(address: str, *, hub: bool = False) -> Path:
    """Finds or fetches the folder at `address`; raises CheckpointError where nothing is there or can be reached.

    With `hub`, hub names `org/name` and `hf-hub:org/name` are meant too; a local folder of the same name goes first.
    """
    if address.startswith("package://"):
        return _package_folder(address)
    if "://" in address:
        return _remote_folder(address)
    path = Path(address).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        if path.suffix in _PICKLES:
            wanted = f"expected a folder with *.safetensors. {CONVERT_PICKLE}"
            raise CheckpointError(f"{address} is a pickle, which can run code when it is loaded: {wanted}")
        raise CheckpointError(f"{address} is a file: expected the folder that holds the checkpoint")
    name = address.removeprefix("hf-hub:")
    if hub and _HUB_NAME.fullmatch(name):
        return hub_folder(name)
    raise CheckpointError(f"no checkpoint folder at {address}: check the path" + (" or the hub name" if hub else ""))


def hub_folder(name: str, files: Sequence[str] = _HUB_FILES) -> Path:
    """Fetches a hub repository's files of the given patterns (never pickles) and returns the local snapshot."""
    from huggingface_hub import snapshot_download  # brings clients of the web, which a local folder does without
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    others = ["onnx/*", "openvino/*"]
    try:
        found = snapshot_download(name, allow_patterns=[*files], ignore_patterns=others, etag_timeout=_CONNECT_SECONDS)
        return Path(found)
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, HFValidationError, OSError) as error:
        raise CheckpointError(
            f"hub checkpoint {name!r} cannot be fetched and is not in the local cache: {_first_line(error)}; "
            "check the name and the network, or fetch it elsewhere and give the folder"
        ) from error


def cache_folder() -> Path:
    """Where copies of checkpoints are kept on this machine: `shelfmark/checkpoints` in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shelfmark" / "checkpoints"


def safetensors_files(folder: Path, preferred: Sequence[str] = ()) -> list[Path]:
    """The weight files of a folder, sorted by name: the first of `preferred` that exists, else all `*.safetensors`.

    Raises CheckpointError where there are none, which says how to convert where only pickles are there.
    """
    for name in preferred:
        if (folder / name).is_file():
            return [folder / name]
    found = sorted(folder.glob("*.safetensors"))
    if found:
        return found
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles:
        wanted = f"expected *.safetensors. {CONVERT_PICKLE}"
        raise CheckpointError(f"{folder} holds {pickles[0]}, a pickle, which can run code when it is loaded: {wanted}")
    raise CheckpointError(f"no *.safetensors in {folder}: the checkpoint has no weights")


def read_config(path: Path) -> dict[str, Any]:
    """Reads a JSON object; raises CheckpointError where it is missing or broken."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"no {path.name} in {path.parent}: expected a checkpoint folder with one") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}: expected a JSON object")
    return values


def write_config(path: Path, values: dict[str, Any]) -> None:
    """Writes a JSON object that `read_config` reads; equal values give equal bytes."""
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_replaceable(target: Path, *, marker: str, kind: str) -> None:
    """CheckpointError unless a folder is new, empty, or of a kind of which every folder has the file `marker`."""
    if target.exists() and not (target.is_dir() and (not any(target.iterdir()) or (target / marker).is_file())):
        raise CheckpointError(f"{target} exists and holds no {kind}: expected a new folder, or an earlier {kind}")


@contextmanager
def replaced_folder(target: Path, *, marker: str, kind: str) -> Iterator[Path]:
    """Gives a new folder to write into, which takes the place of `target` once the block has ended without an error.

    `target` as `check_replaceable` wants it.
    """
    check_replaceable(target, marker=marker, kind=kind)
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.part-"))
    try:
        staged.chmod(0o755)
        yield staged
        if target.exists():
            shutil.rmtree(target)
        staged.rename(target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _package_folder(address: str) -> Path:
    name, _, inside = address.removeprefix("package://").partition("/")
    try:
        root = importlib.resources.files(name)
    except (ModuleNotFoundError, ValueError, TypeError) as error:
        raise CheckpointError(f"{address}: the Python package {name!r} is not installed here; install it") from error
    folder = Path(str(root.joinpath(inside) if inside else root))
    if not folder.is_dir():
        raise CheckpointError(
            f"{address}: the package {name!r} is installed and has no folder {inside!r} (looked in {root})"
        )
    return folder


def _remote_folder(uri: str) -> Path:
    """Copies a remote folder into the cache, keyed by its files' names, sizes and stamps, and returns the copy."""
    try:
        file_system, root = fsspec.core.url_to_fs(uri)
        if isinstance(file_system, fsspec.implementations.local.LocalFileSystem):
            return local_folder(root)
        listing = file_system.find(root, detail=True)
    except (ImportError, ValueError, OSError) as error:
        raise CheckpointError(f"{uri} cannot be listed: {_first_line(error)}") from error
    files = {path: found for path, found in sorted(listing.items()) if found.get("type") == "file"}
    if not files:
        raise CheckpointError(f"no files under {uri}: expected a checkpoint folder")
    keys = ("ETag", "etag", "mtime", "LastModified", "created")
    stamps = [[path, found.get("size"), *(str(found.get(key)) for key in keys)] for path, found in files.items()]
    key = hashlib.sha256(json.dumps([uri, stamps]).encode()).hexdigest()[:32]
    cache = cache_folder()
    target = cache / key
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(dir=cache, prefix=f"{key}.part-"))
    try:
        for path in files:
            local = staged / path.removeprefix(root).lstrip("/")
            local.parent.mkdir(parents=True, exist_ok=True)
            file_system.get_file(path, str(local))
        staged.rename(target)
    except OSError as error:
        if not target.is_dir():  # else another process was first, with the same bytes
            raise CheckpointError(f"{uri} cannot be copied to {cache}: {_first_line(error)}") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return target


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
