from __future__ import annotations

from collections.abc import Sequence

import pytest

from encoders.errors import CheckpointError, EncoderError
from index_builder.errors import StorageError
from pipelines.catalog.config import CatalogError
from pipelines.config import ConfigError, run_command


class GateError(Exception):
    pass


class StrictGateError(GateError):
    pass


def test_the_commands_own_exit_code_passes() -> None:
    assert run_command(lambda argv: 3 if list(argv) == ["x"] else None, ["x"]) == 3
    assert run_command(lambda argv: None, []) == 0


@pytest.mark.parametrize("kind", [ConfigError, CatalogError, EncoderError, CheckpointError, StorageError])
def test_errors_raised_on_purpose_are_one_message_and_exit_code_2(
    kind: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: Sequence[str]) -> int:
        raise kind("what is wrong")

    assert run_command(main, []) == 2
    captured = capsys.readouterr()
    assert captured.err == "error: what is wrong\n"
    assert captured.out == ""


def test_a_command_names_further_errors_and_the_nearest_class_decides(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: Sequence[str]) -> int:
        raise StrictGateError("recall is too low")

    assert run_command(main, [], exit_codes={Exception: 9, GateError: 4}) == 4
    assert capsys.readouterr().err == "error: recall is too low\n"


def test_a_bug_keeps_its_traceback() -> None:
    def main(argv: Sequence[str]) -> int:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        run_command(main, [])


def test_an_interrupt_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: Sequence[str]) -> int:
        raise KeyboardInterrupt

    assert run_command(main, []) == 130
    assert capsys.readouterr().err.startswith("interrupted")
