"""The exceptions of this room say what was expected, what was found, where, and what to do.

EncoderError
├── CheckpointError        weights or folders that are missing, unsafe, incomplete or do not fit
├── EncoderConfigError     a setting with a value that cannot work (also a ValueError)
├── ImageDecodingError     bytes that are no image, a damaged one, or one too large (also a ValueError)
└── TrainingError          a training run that cannot go on; what it had learned stands in its last checkpoint
"""

from __future__ import annotations

from typing import Literal


class EncoderError(Exception):
    """Root of all errors raised on purpose by `encoders`.

    Remedy: See the kind that was raised; the message says what was found and expected.
    """


class CheckpointError(EncoderError):
    """A checkpoint is missing, unreachable, unsafe (a pickle), incomplete, or of another shape than expected.

    Remedy: Compare the address in the message with what lies there; pickles are converted to safetensors as the message
        says, a hub name needs the network or a local copy once, and an export or a copy that is incomplete is made
        again.
    """


class EncoderConfigError(EncoderError, ValueError):
    """A setting of the `encoder:` section has an impossible value; the message gives key, value, what is expected.

    Remedy: Set the key that the message names to what it expects; `--print-config` shows what is in force.
    """


class ImageDecodingError(EncoderError, ValueError):
    """An image could not be decoded: `reason` says in which of four ways, `detail` what was found.

    Remedy: Give an image (JPEG, PNG, WebP, AVIF, GIF) that other programs open, within `decode.max_pixels`. Of a
        catalog it becomes a dead letter and stops nothing.
    """

    def __init__(
        self, reason: Literal["unreadable", "truncated", "too_large", "unsupported_type"], detail: str = ""
    ) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"picture {self.reason.replace('_', ' ')}: {self.detail}"


class TrainingError(EncoderError):
    """A training run met numbers or data that it cannot go on with; its last checkpoint is good.

    Remedy: Numbers that are not finite: a lower `training.learning_rate`, or `precision: float32`, from the last
        checkpoint (`training.resume: last`). Else mend what the message names and give the same command again.
    """
