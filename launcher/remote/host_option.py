"""`--host` for a command: runs it on a server, with the same words. Imports nothing heavier than click."""

from __future__ import annotations

import functools
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from launcher.base.errors import RefusedError
from launcher.remote.host import parse_host

F = TypeVar("F", bound=Callable[..., Any])
COMMANDLINE = click.core.ParameterSource.COMMANDLINE


def on_host(job: bool = False, detached: bool = False, fetches: bool = False) -> Callable[[F], F]:
    """The option `--host` of a command.

    `job`: the first word may be a job file, which is sent, too. `detached`: the command must outlive the connection.
    `fetches`: the submission is copied here first, and the command then works on the copy.
    """

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def wrapper(*, host: str | None, **arguments: Any) -> Any:
            size, into = arguments.pop("job_bytes", None), arguments.pop("into", None)
            if size is not None:
                click.get_current_context().obj = _receive(size)
            if host is None:
                if into is not None:
                    raise click.UsageError("--into needs --host: it is the folder for the copy")
                return function(**arguments)
            from launcher.remote import fetch, ssh

            server, context = parse_host(host), click.get_current_context()
            if fetches:
                words = _words(context, "name", "runs_root")
                copy = fetch.fetch(server, words, into or _runs_here(), quiet=arguments["as_json"])
                arguments |= {"name": str(copy), "runs_root": copy.parent}
                return function(**arguments)
            words = [*(["--detach"] if detached else []), *_words(context)]
            file = ssh.read_job(arguments["words"][0]) if job else None
            if detached:
                return ssh.submit(server, context.command.name or "", words, file, _shown_runs(context))
            return ssh.run_command(server, context.command.name or "", words, file)

        options = [click.option("--host", metavar="USER@SERVER[:DIR]", help="Run the command on that server over ssh.")]
        if job:
            options.append(click.option("--job-bytes", type=int, hidden=True))
        if fetches:
            folder = click.Path(path_type=Path, file_okay=False)
            options.append(
                click.option("--into", type=folder, help="With --host: folder for the copy (default: as for --runs).")
            )
        decorated: Any = wrapper
        for option in options:
            decorated = option(decorated)
        return decorated  # type: ignore[no-any-return]

    return decorate


def _receive(size: int) -> bytes:
    """Read the job file that another machine's launcher sends. If it is incomplete, nothing is started."""
    content = sys.stdin.buffer.read(size)
    if len(content) < size:
        raise RefusedError(
            f"received {len(content)} of the job file's {size} bytes; nothing was started; repeat the command", 1
        )
    return content


def _runs_here() -> Path:
    return Path(os.environ.get("LAUNCHER_RUNS") or "runs")


def _shown_runs(context: click.Context) -> str:
    """` --runs DIR` for the next command, if this command has it."""
    named = context.get_parameter_source("runs_root") is COMMANDLINE
    return f" --runs {shlex.quote(str(context.params['runs_root']))}" if named else ""


def _words(context: click.Context, *names: str) -> list[str]:
    """The words of the command line (for these parameters; by default for all), to repeat on the server.

    Without defaults and values from the environment: the server has its own.
    """
    options, arguments = [], []
    for parameter in context.command.params:
        name = parameter.name or ""
        if name in ("host", "detach") or (names and name not in names):
            continue
        if context.get_parameter_source(name) is not COMMANDLINE:
            continue
        value = context.params[name]
        values = list(value) if isinstance(value, tuple) else [value]
        if isinstance(parameter, click.Argument):
            arguments += [str(item) for item in values]
        elif isinstance(parameter, click.Option) and parameter.is_flag:
            options.append(max(parameter.opts, key=len))
        else:
            options += [f"{max(parameter.opts, key=len)}={item}" for item in values]
    return [*options, "--", *arguments]
