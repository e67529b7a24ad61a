"""Every error ends the command with one line and the exit code of its class."""

from __future__ import annotations

import pytest

from launcher.__main__ import main
from launcher.base import errors

CODES = [
    (errors.RunError("x"), 1),
    (errors.FencedError("x"), 1),
    (errors.RunFileError("x"), 1),
    (errors.RecordError("x"), 1),
    (errors.UnknownNameError("x"), 64),
    (errors.DamagedFileError("x"), 65),
    (errors.LeaseLostError("x"), 1),
    (errors.EngineError("x"), 1),
    (errors.RefusedError("x", 3), 3),
    (errors.SizeError("x"), 64),
    (errors.JobError("x"), 64),
    (errors.MachineError("x"), 64),
    (errors.ArgumentError("x"), 64),
    (errors.DataFolderError("x"), 65),
]


@pytest.mark.parametrize(("error", "code"), CODES, ids=[type(error).__name__ for error, _ in CODES])
def test_the_class_of_an_error_says_the_exit_code(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*words: object, **more: object) -> None:
        raise error

    monkeypatch.setattr("launcher.cli.main.cli.main", fail)
    with pytest.raises(SystemExit) as ended:
        main(["collect"])
    assert (ended.value.code, capsys.readouterr().err) == (code, "error: x\n")


def test_every_error_has_its_code_here() -> None:
    tested = {type(error) for error, _ in CODES} | {errors.LauncherError}
    known = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)}
    assert known == tested
