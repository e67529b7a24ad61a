"""The Docker engine as this process reaches it: for work that may take its time, and for questions that must not."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from launcher.base.errors import EngineError, RunError
from launcher.engines.docker import client as docker_client
from launcher.engines.docker.client import explain

if TYPE_CHECKING:
    from docker import DockerClient

PULSE = 5
"""Seconds within which an engine that works answers a ping."""
FAILED_FOR = 10.0
"""Seconds for which an engine that could not be reached is not tried again by one who only looks."""


class Connection:
    """Made when it is first used, and kept."""

    def __init__(self) -> None:
        self._client: DockerClient | None = None
        self._pulse: DockerClient | None = None
        self._failure: EngineError | None = None
        self._failed = 0.0

    @property
    def client(self) -> DockerClient:
        """Raises EngineError where no engine answers; one that did not a moment ago is not asked again at once."""
        if self._client is None:
            if self._failure is not None and time.monotonic() - self._failed < FAILED_FOR:
                raise self._failure
            try:
                self._client = docker_client.connect()
            except EngineError as error:
                self._failure, self._failed = error, time.monotonic()
                raise
        return self._client

    @cached_property
    def is_local(self) -> bool:
        """Whether the engine's containers are processes of this host, as far as its address tells."""
        return str(self.client.api.base_url).startswith(("http+docker", "http+unix", "unix"))

    @cached_property
    def info(self) -> dict[str, Any]:
        """What the engine says of itself."""
        told: dict[str, Any] = self._asked(self.client.info)
        return told

    def _asked(self, question: Callable[[], Any]) -> Any:
        """The engine's answer. Raises EngineError in place of the SDK's errors."""
        try:
            return question()
        except RunError:
            raise
        except Exception as error:
            raise EngineError(f"the Docker engine does not answer as it should: {explain(error)}") from None

    def _answers(self) -> bool:
        with suppress(Exception):
            return bool(self._impatient().api.ping())
        return False

    def _impatient(self) -> DockerClient:
        """For what a working engine answers at once, and must not hold up the launcher where it does not answer.

        Raises EngineError.
        """
        if self._pulse is None:
            self._pulse = docker_client.connect(timeout=PULSE)
        return self._pulse
