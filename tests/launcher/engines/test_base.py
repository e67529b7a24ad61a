"""The interface of engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.engines import registry
from launcher.engines.base import Choice, QueueEngine, SupervisedEngine, Want


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
