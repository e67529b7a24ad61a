"""Connections of this process to the Docker engine: one for slow work, and one for quick questions."""

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
"""Seconds within which a working engine answers a ping."""
FAILED_FOR = 10.0
"""After a failed connection, a read-only command does not try again for this many seconds."""


class Connection:
    """Created at its first use, and kept."""

    def __init__(self) -> None:
        self._client: DockerClient | None = None
        self._pulse: DockerClient | None = None
        self._failure: EngineError | None = None
        self._failed = 0.0

    @property
    def client(self) -> DockerClient:
        """The client. Raises EngineError if no engine answers. After a failure does not ask again for a moment."""
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
        """Whether the engine's containers are processes of this host, judged by its address."""
        return str(self.client.api.base_url).startswith(("http+docker", "http+unix", "unix"))

    @cached_property
    def info(self) -> dict[str, Any]:
        """The engine's description of itself."""
        told: dict[str, Any] = self.ask(self.client.info)
        return told

    def ask(self, question: Callable[[], Any]) -> Any:
        """The engine's answer. Raises EngineError instead of the SDK's errors."""
        try:
            return question()
        except RunError:
            raise
        except Exception as error:
            raise EngineError(f"the Docker engine reports an error: {explain(error)}") from None

    def answers(self) -> bool:
        """Whether the engine answers quickly."""
        with suppress(Exception):
            return bool(self.impatient().api.ping())
        return False

    def impatient(self) -> DockerClient:
        """A client for quick questions, with a short timeout, so that a silent engine does not block the launcher.

        Raises EngineError.
        """
        if self._pulse is None:
            self._pulse = docker_client.connect(timeout=PULSE)
        return self._pulse
