"""The encoder that training starts from: a saved one, or towers of other checkpoints."""

from __future__ import annotations

from encoders.errors import CheckpointError
from encoders.loading import TowerSources, resolve_encoder
from encoders.saved_folder import EncoderParts, SavedEncoder
from encoders.spec import EncoderConfig


def find_starting_point(config: EncoderConfig) -> SavedEncoder | TowerSources:
    """Finds the files of both sides of the encoder that `config` names.

    Raises:
        CheckpointError: As `check_encoder`, and for a folder that holds the query side only.
    """
    source = resolve_encoder(config)
    if isinstance(source, SavedEncoder):
        check_whole(source)
    return source


def load_starting_point(config: EncoderConfig) -> EncoderParts:
    """Loads both sides of the encoder that `config` names; a fusion without trained weights starts at random.

    Raises:
        CheckpointError: As `check_encoder`, and for a folder that holds the query side only.
    """
    return find_starting_point(config).load()


def check_whole(source: SavedEncoder) -> None:
    """Raises CheckpointError for a folder that holds one side only."""
    if source.side != "both":
        raise CheckpointError(f"{source.folder} holds the {source.side} side only: training needs the whole encoder")
