"""Runs as containers of a Docker engine, one per run, each watched by a thread of this process.

A container outlives the launcher, and its labels name its run. The next launcher adopts it, and `launcher status`
records how it ended.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.base.errors import EngineError, RunError
from launcher.engines import orphans, secret_files
from launcher.engines.docker import client, create, podman, recipe
from launcher.engines.docker.client import explain
from launcher.engines.docker.connection import Connection
from launcher.engines.docker.watched import ContainerAttempt, ending, sample_memory, state_at_end
from launcher.engines.orphans import Executor
from launcher.engines.outcome import GRACE, forget_result, heading
from launcher.host import account, gpu_locks, processes
from launcher.host.gpu_locks import GpuLock
from launcher.record import retry, trainer_files
from launcher.record.folders import clear_stop, request_stop, stop_requested
from launcher.record.journal import append_event, read_events, read_status
from launcher.record.locks import run_locked
from launcher.record.request import read_request
from launcher.record.states import ENDED, State
from launcher.record.trainer_files import LOG, write_log

if TYPE_CHECKING:
    from docker.models.containers import Container

NAME = "docker"
"""The engine's name in records."""
SLICE = 10
"""Seconds of one wait for a container's end. After each wait the engine is asked whether it still answers."""
PATIENCE = 1.0
"""Seconds between two attempts to reach an engine that does not answer, or to write on a full disk."""
POLL = 0.25
"""Start sampling a container's memory after this many seconds."""
CLEARING = 30.0
"""Seconds that a run waits until its earlier attempt is removed."""


def stopped_or_ended(watched: ContainerAttempt, state: Mapping[str, Any]) -> tuple[State, str, dict[str, Any]]:
    """See `watched.ending`. A stop was requested if the run directory says so."""
    return ending(watched, state, stop_requested(watched.run_dir))


@dataclass(frozen=True)
class Hooks:
    """What another engine changes in the life of its containers."""

    mark: Mapping[str, Any] = field(default_factory=dict)
    """Fields for the events of the runs, beside or instead of this engine's."""
    options: Callable[[dict[str, Any]], dict[str, Any]] = dict
    """Changes the options of `recipe.options`."""
    created: Callable[[str], None] = lambda container: None
    """Called with the container's id between its creation and its start."""
    ending: Callable[[ContainerAttempt, Mapping[str, Any]], tuple[State, str, dict[str, Any]]] = stopped_or_ended
    """State, reason and figures of the run's last event, from `watched.state_at_end`."""


NO_HOOKS = Hooks()


def began(figures: Mapping[str, Any], started_at: str) -> float:
    """When a container of another launcher was started, by the monotonic clock of this process; 0: unknown. `figures`
    of the run's last event; `started_at` by the engine. Its time limit must not depend on the time of day, which may
    have been set since: the engine's word counts only after a reboot, or for another host."""
    moment: float | None = figures.get("uptime")
    if moment is not None and processes.boot() and figures.get("boot") == processes.boot():
        return time.monotonic() - max(0.0, processes.uptime() - moment)
    started = client.seconds(started_at)
    return time.monotonic() - max(0.0, time.time() - started) if started else 0.0


class Containers:
    """Starts runs as containers, watches them, and adopts those of other launchers. See `SupervisedEngine` for the
    methods that have the name of one of its methods."""

    def __init__(self, connection: Connection, hooks: Hooks = NO_HOOKS) -> None:
        self.connection = connection
        self.hooks = hooks
        self.trouble: str | None = None
        self._watched: dict[Path, ContainerAttempt] = {}
        self._changed = threading.Event()
        self._down = False

    def mark(self) -> dict[str, Any]:
        """See `SupervisedEngine.mark`."""
        return {"engine": NAME, "engine_id": podman.identity(self.connection.info), **self.hooks.mark}

    # -- the stages of a run

    def start(self, run_dir: Path, attempt: int, devices: Sequence[str], held: Sequence[GpuLock]) -> None:
        """See `SupervisedEngine.start`."""
        locks = [GpuLock(one.gpu, os.dup(one.descriptor)) for one in held]
        watched = ContainerAttempt(run_dir, attempt, read_request(run_dir), locks)
        clear_stop(run_dir)
        self._in_thread(watched, lambda: self._begin(watched, devices))

    def _in_thread(self, watched: ContainerAttempt, work: Callable[[], None]) -> None:
        def body() -> None:
            try:
                # The thread of the earlier attempt may still be removing it, for a moment.
                run_dir = watched.run_dir
                with orphans.executed(run_dir, CLEARING, lambda: stop_requested(run_dir), lambda line: None) as mine:
                    if mine:
                        orphans.sign(mine, Executor(processes.this()))
                        work()
                    else:
                        self._wait_again(watched)
            except RunError:
                pass  # the journal already has another event
            finally:
                self._release(watched)
                self._changed.set()

        watched.thread = threading.Thread(target=body, name=watched.run_dir.name, daemon=True)
        self._watched[watched.run_dir] = watched
        watched.thread.start()

    def _release(self, watched: ContainerAttempt) -> None:
        """Release the attempt's locks, and its share of the host unless its container outlives this launcher."""
        over = False
        with suppress(OSError, RunError):
            over = read_status(watched.run_dir).state not in ("starting", "running")
        for one in watched.held:
            if over:
                account.forget(one)
            one.close()

    def _wait_again(self, watched: ContainerAttempt) -> None:
        """Another process holds the run's lock for too long: a run that was about to start goes back to the queue, and
        that counts as no attempt."""
        run_dir = watched.run_dir
        if read_status(run_dir).state != "starting":
            return
        if stop_requested(run_dir):
            append_event(run_dir, "cancelled", watched.attempt, "stopped before it started", **self.mark())
            return
        why = f"waits for the run's lock, which {orphans.holder(run_dir)} holds"
        append_event(run_dir, "queued", watched.attempt, why, retry=retry.retries(read_events(run_dir)))

    def _begin(self, watched: ContainerAttempt, devices: Sequence[str]) -> None:
        run_dir, engine = watched.run_dir, self.connection
        try:
            place = create.place(
                engine.client, engine.info, engine.is_local, watched.request, run_dir, watched.attempt
            )  # fmt: skip
            locks = [one.gpu for one in watched.held if one.gpu]
            given = recipe.options(watched.request, place, run_dir, watched.attempt, devices, locks)
            trainer_files.hand_over(run_dir, place.user)
            watched.log_begin = trainer_files.size(run_dir, LOG) or 0
            write_log(run_dir, heading(watched.request, watched.attempt))
            if sum(event["state"] == "starting" for event in read_events(run_dir)) > 1:
                # A failing engine may have started it anyway: two containers must not share a run directory.
                for left in client.of_run(engine.client, run_dir):
                    left.remove(force=True, v=True)
            forget_result(watched.request, run_dir)
            watched.id, warned = create.create(engine.client, engine.info, self.hooks.options(given))
            self.hooks.created(watched.id)
            engine.client.api.start(watched.id)
            watched.began = time.monotonic()
        except Exception as error:  # errors of the SDK and its HTTP library, and of the host's files
            self._clear(watched)
            if not isinstance(error, RunError) and not engine.answers():
                # The run is not to blame: it stays in the queue, and no run starts until the engine is back.
                self._down = True
                if stop_requested(run_dir):
                    append_event(run_dir, "cancelled", reason="stopped before it started")
                    return
                done = retry.retries(read_events(run_dir))
                append_event(run_dir, "queued", reason="the Docker engine does not answer", retry=done)
                return
            reason = str(error) if isinstance(error, EngineError | FileNotFoundError) else explain(error)
            append_event(run_dir, "failed", reason=f"could not be started: {reason}", **self.mark())
            return
        try:
            append_event(
                run_dir, "running", watched.attempt, devices=list(devices), host=os.uname().nodename,
                container=watched.id[:12], image=place.image, network=place.network, boot=processes.boot(),
                uptime=round(processes.uptime(), 2),
                reason=f"the engine warns: {warned}" if warned else "", **self.mark(),
            )  # fmt: skip
        except RunError:  # withdrawn meanwhile
            self._clear(watched)
            raise
        if stop_requested(run_dir):
            self._end(watched, at_once=False)
        self._attend(watched)

    def _attend(self, watched: ContainerAttempt) -> None:
        """Wait for the container's end, even if the engine is silent for a long time, and record it."""
        from docker.errors import NotFound

        while True:
            try:
                self.connection.client.api.wait(watched.id, timeout=SLICE)
                self._finish(watched)
                self.trouble = None
                return
            except NotFound:
                secret_files.take_back(watched.run_dir, watched.attempt)
                append_event(
                    watched.run_dir, "lost", reason="its container disappeared (somebody removed it)", **self.mark()
                )
                return
            except RunError:
                raise
            except OSError as error:  # includes errors of requests: a silent engine, or the end of one wait
                if isinstance(error, TimeoutError) or "Read timed out" in str(error):
                    if self.connection.answers():
                        self.trouble = None
                        if watched.timed_out or stop_requested(watched.run_dir):
                            self._end(watched, at_once=False)  # the engine may not have received the first request
                        continue
                    self.trouble = "the Docker engine does not answer; its containers are waited for"
                elif getattr(error, "errno", None) is not None and error.errno and not client.is_network(error):
                    self.trouble = f"{watched.run_dir.name}: its end cannot be recorded yet: {error.strerror}"
                else:
                    self.trouble = "the Docker engine does not answer; its containers are waited for"
            except Exception as error:  # APIError: an engine that is shutting down or failing
                self.trouble = f"the Docker engine reports an error: {explain(error)}"
            time.sleep(PATIENCE)

    def _finish(self, watched: ContainerAttempt) -> None:
        """Record how the container ended, save its output, and remove it."""
        run_dir = watched.run_dir
        state = state_at_end(self.connection.client, watched)
        secret_files.take_back(run_dir, watched.attempt)  # before the journal records the end
        outside = self.connection.client.api.logs(watched.id).decode(errors="replace")
        if outside.strip():  # output from before the log was open: of the shell, or the engine's init
            write_log(run_dir, outside)
        word, reason, figures = self.hooks.ending(watched, state)
        if read_status(run_dir).state not in ENDED:
            append_event(run_dir, word, watched.attempt, reason, **figures, **self.mark())
        self._changed.set()  # the next run may start while this one is removed
        clear_stop(run_dir)
        self._clear(watched)

    def poll(self, run_dir: Path) -> bool:
        """See `SupervisedEngine.poll`."""
        watched = self._watched.get(run_dir)
        if watched is None:
            return self._adopt(run_dir)
        if watched.thread is not None and not watched.thread.is_alive():
            del self._watched[run_dir]
            return read_status(run_dir).state not in ENDED
        if watched.began and time.monotonic() - watched.began > POLL:
            sample_memory(watched, self.connection.impatient if self.connection.is_local else None)
        limit = watched.request.timeout
        if limit and watched.began and not watched.timed_out and time.monotonic() - watched.began > limit:
            watched.timed_out = True
            self._end(watched, at_once=False)
        return True

    def _adopt(self, run_dir: Path) -> bool:
        """Watch a container that another launcher started. If there is none, record that."""
        try:
            container = self._find(run_dir)
            if container is None:
                return self.settle(run_dir)
        except EngineError as error:
            self.trouble = str(error)
            return True
        locks = [word for word in container.labels.get(client.LOCKS, "").split(",") if word]
        request, attempt = read_request(run_dir), read_status(run_dir).attempt
        held = [gpu_locks.acquire_for(lock, run_dir, request.share_gpu) for lock in locks]
        with suppress(OSError):
            held.append(account.reclaim(run_dir, NAME, request.resources.cpus or 0, request.resources.memory or 0))
        watched = ContainerAttempt(run_dir, attempt, request, [one for one in held if one], str(container.id))
        watched.began = began(read_status(run_dir).figures, container.attrs["State"]["StartedAt"])
        self._in_thread(watched, lambda: self._take_over(watched, container))
        return True

    def _take_over(self, watched: ContainerAttempt, container: Container) -> None:
        """Watch a container of another launcher, which may have died during the start."""
        status = read_status(watched.run_dir)
        if status.state == "starting":
            if container.attrs["State"]["Status"] == "created":
                self._clear(watched)
                append_event(watched.run_dir, "lost", reason="its launcher died during the start", **self.mark())
                return
            devices = status.figures.get("devices") or []
            append_event(
                watched.run_dir, "running", devices=devices, host=os.uname().nodename, container=watched.id[:12],
                **self.mark(),
            )  # fmt: skip
        self._attend(watched)

    def _find(self, run_dir: Path) -> Container | None:
        """The container of the run's current attempt: that of its last event, else by labels. Raises EngineError."""
        from docker.errors import NotFound

        status = read_status(run_dir)
        if named := status.figures.get("container"):
            try:
                return self.connection.client.containers.get(str(named))
            except NotFound:
                return None
            except Exception as error:
                raise EngineError(f"the Docker engine does not answer as it should: {explain(error)}") from None
        containers: list[Container] = self.connection.ask(lambda: client.of_run(self.connection.client, run_dir))
        return next((one for one in containers if one.labels.get(client.ATTEMPT) == str(status.attempt)), None)

    def settle(self, run_dir: Path) -> bool:
        """See `Engine.settle`."""
        status = read_status(run_dir)
        if status.state in ENDED or status.state == "queued":
            return False
        if status.figures.get("engine_id") != self.mark()["engine_id"]:
            self.trouble = f"{run_dir.name} is a container of another Docker engine: set DOCKER_HOST as at its start"
            return True
        with run_locked(run_dir) as free:
            if not free:
                return True  # a launcher watches it
            status = read_status(run_dir)
            if status.state not in ("starting", "running"):
                return False
            container = self._find(run_dir)
            if container is None:
                secret_files.take_back(run_dir, status.attempt)
                asked = stop_requested(run_dir)
                reason = "stopped while it started" if asked else "its container is gone, and its end was not recorded"
                append_event(run_dir, "cancelled" if asked else "lost", reason=reason, **self.mark())
                return False
            state = container.attrs["State"]
            if state["Status"] in client.ALIVE:
                return True
            if status.state == "starting":
                if state["Status"] == "created":  # its launcher died between creation and start
                    self._clear(ContainerAttempt(run_dir, status.attempt, read_request(run_dir), id=str(container.id)))
                    append_event(run_dir, "lost", reason="its launcher died during the start", **self.mark())
                    return False
                devices = status.figures.get("devices") or []
                append_event(
                    run_dir, "running", devices=devices, container=str(container.id)[:12], **self.mark()
                )  # fmt: skip
            watched = ContainerAttempt(run_dir, status.attempt, read_request(run_dir), id=str(container.id))
            self.connection.ask(lambda: self._finish(watched))
        return False

    def stop(self, run_dir: Path) -> None:
        """See `Engine.stop`."""
        self._request_end(run_dir, at_once=False)

    def kill(self, run_dir: Path) -> None:
        """See `Engine.kill`."""
        self._request_end(run_dir, at_once=True)

    def _request_end(self, run_dir: Path, at_once: bool) -> None:
        request_stop(run_dir)
        watched = self._watched.get(run_dir)
        if watched is None:
            container = self._find(run_dir)
            if container is None:
                return
            watched = ContainerAttempt(
                run_dir, read_status(run_dir).attempt, read_request(run_dir), id=str(container.id)
            )
        self._end(watched, at_once)

    def end(self, run_dir: Path, at_once: bool) -> bool:
        """Send SIGTERM, or SIGKILL, to the container of a run that this process has started. Returns False if there is
        none yet."""
        watched = self._watched.get(run_dir)
        if watched is None or not watched.id:
            return False
        self._end(watched, at_once)
        return True

    def forget(self, run_dir: Path) -> None:
        """Remove the container of an attempt whose run a newer attempt has taken over."""
        watched = self._watched.get(run_dir)
        if watched is not None:
            create.remove(self.connection.client, watched.id)

    def _end(self, watched: ContainerAttempt, at_once: bool) -> None:
        """Let the engine send SIGTERM, and SIGKILL after the grace period, which works even if this process ends
        first."""
        if not watched.id:
            return  # the thread that starts it will find the request
        container = watched.id

        def body() -> None:
            with suppress(Exception):  # it has ended by itself, or the engine is silent: `_attend` notices both
                if at_once:
                    self.connection.client.api.kill(container)
                else:
                    self.connection.client.api.stop(container, timeout=int(GRACE))

        thread = threading.Thread(target=body, daemon=not at_once)
        thread.start()

    def wait(self, seconds: float) -> None:
        """See `SupervisedEngine.wait`."""
        self._changed.wait(seconds)
        self._changed.clear()

    def taken(self) -> dict[str, str]:
        """See `SupervisedEngine.taken`."""
        try:
            return client.devices_in_use(self.connection.impatient())
        except Exception as error:
            self._down = True  # the holders of GPUs are unknown: nothing may start
            self.trouble = f"the Docker engine reports an error: {explain(error)}"
            return {}

    def ready(self) -> bool:
        """See `SupervisedEngine.ready`."""
        if self._down:
            self._down = not self.connection.answers()
            self.trouble = "the Docker engine does not answer; it is waited for" if self._down else None
        return not self._down

    def close(self) -> None:
        """See `SupervisedEngine.close`."""
        deadline = time.monotonic() + CLEARING
        for watched in list(self._watched.values()):
            over = read_status(watched.run_dir).state in ENDED
            if watched.thread is not None and over:
                watched.thread.join(max(0.0, deadline - time.monotonic()))

    def _clear(self, watched: ContainerAttempt) -> None:
        """Remove everything of an attempt outside its run directory."""
        secret_files.take_back(watched.run_dir, watched.attempt)
        create.remove(self.connection.client, watched.id)
