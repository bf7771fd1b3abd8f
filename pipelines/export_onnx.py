"""Exports a query encoder: `python -m pipelines.export_onnx (--index URI | --encoder FOLDER) --out FOLDER`.

What a server on CPUs loads with `encoders.load_onnx_query_encoder(FOLDER)`, without torch. Exit codes: 0 written, 1
failed while it wrote (an earlier export stays), 2 the address or the folder cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from index_builder import IndexReader
from pipelines.config.command_line import address, run_command
from pipelines.config.exit_codes import failures_of_work
from pipelines.config.validation import ConfigError


def main(argv: Sequence[str]) -> int:
    """Exports the query encoder of a published version, or of a saved encoder."""
    arguments = _parser().parse_args(argv)
    try:
        from encoders.onnx_export import export_onnx
    except ModuleNotFoundError as error:
        if error.name not in ("onnx", "onnxruntime", "onnxscript", "ftfy"):
            raise
        raise ConfigError(["the export needs the extra `onnx`: pip install -e '.[onnx]'"]) from error
    uri = arguments.encoder
    if uri is None:
        reader = IndexReader.open(arguments.index, version=arguments.version)
        if reader.query_encoder_uri is None:
            raise ConfigError(f"--index {arguments.index}: version {reader.manifest.version} has no query encoder")
        uri = reader.query_encoder_uri
    working = partial(failures_of_work, remedy="")
    values = export_onnx(uri, arguments.out, layout=arguments.layout, working=working)
    kinds = [name for name, there in (("texts", "accepts_text"), ("pictures", "accepts_images")) if values[there]]
    print(
        f"wrote {arguments.out}: {values['model']}, {values['dim']} numbers a vector, queries are "
        f"{' and '.join(kinds)}; products' vectors by encoder {values['fingerprint']}"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.export_onnx", description="Write the query encoder as ONNX graphs, for CPU servers."
    )
    source = parser.add_mutually_exclusive_group(required=True)
    of_index = "take the encoder of a published version (index.uri)"
    source.add_argument("--index", type=address, metavar="URI", help=of_index)
    of_encoder = "take a saved encoder: folder, package:// or URI"
    source.add_argument("--encoder", type=address, metavar="FOLDER", help=of_encoder)
    parser.add_argument("--out", type=address, required=True, metavar="FOLDER", help="local folder for the graphs")
    of_layout = "files, or a model repository of Triton and OpenVINO Model Server (default files)"
    parser.add_argument("--layout", choices=("files", "triton"), default="files", help=of_layout)
    parser.add_argument("--version", metavar="ID", help="with --index: this version instead of the published one")
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
