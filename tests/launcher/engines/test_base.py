"""The interface of engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.base.errors import RunError
from launcher.engines import registry
from launcher.engines.base import Choice, QueueEngine, SupervisedEngine, Want
from launcher.engines.native import engine as native
from launcher.engines.native import execute
from launcher.record.journal import append_event, create_run, read_status
from launcher.record.request import RunRequest


class _Unfinished(SupervisedEngine):
    name = "unfinished"
    where = "nowhere"

    def offer(self, want: Want) -> Choice:
        return Choice(self, want.host(), "nothing")

    def settle(self, run_dir: Path) -> bool:
        return False


def test_an_engine_that_lacks_a_method_cannot_be_created() -> None:
    with pytest.raises(TypeError, match=r"again.*kill.*start.*stop"):
        _Unfinished()  # type: ignore[abstract]


@pytest.mark.parametrize("name", registry.ENGINES)
def test_every_engine_has_all_methods_and_no_trouble_at_first(name: str) -> None:
    engine = type(registry.engine(name))()
    assert isinstance(engine, SupervisedEngine | QueueEngine) and engine.name == name
    assert engine.trouble is None


@pytest.mark.parametrize("name", registry.ENGINES)
def test_the_registry_knows_who_has_a_queue(name: str) -> None:
    assert registry.ENGINES[name].has_queue == isinstance(registry.engine(name), QueueEngine)


def test_what_is_left_of_a_first_start_does_not_execute_the_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt that was stopped before its trainer was started is started again under its number."""
    run_dir = tmp_path / "job" / "001-x"
    create_run(run_dir, RunRequest("001-x", 1, "train", ["train"]))
    environments: list[dict[str, str]] = []
    monkeypatch.setattr(native.subprocess, "Popen", lambda command, env, **more: environments.append(env))
    its = registry.supervised("native")
    for state in ("starting", "cancelled", "queued", "starting"):
        append_event(run_dir, state, again=state == "queued")  # type: ignore[arg-type]
        if state == "starting":
            its.start(run_dir, 1, [], [])
    monkeypatch.setattr(execute, "run_trainer", lambda *given: 0)
    first, second = environments
    for environment, refused in ((first, True), (second, False)):
        monkeypatch.setattr(execute.os, "environ", environment)
        if refused:
            with pytest.raises(RunError, match="this start of attempt 1 was withdrawn"):
                execute.execute(run_dir, 1)
        else:
            assert execute.execute(run_dir, 1) == 0
        assert (read_status(run_dir).state, read_status(run_dir).attempt) == ("starting", 1)
