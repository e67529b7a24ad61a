"""Shell completion of jobs, groups, submissions and runs. It is quick, and prints no errors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import click

MOST = 500
"""Largest number of names to offer."""
Completer = Callable[[click.Context, click.Parameter, str], list[str]]


def _quiet(function: Completer) -> Completer:
    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        try:
            return function(context, parameter, incomplete)
        except Exception:  # a message would appear in the middle of the user's command line
            return []

    return complete


def _beginning(words: Iterable[str], incomplete: str) -> list[str]:
    return [word for word in words if word.startswith(incomplete)][:MOST]


def _root(context: click.Context) -> Path:
    return Path(context.params.get("runs_root") or os.environ.get("LAUNCHER_RUNS") or "runs")


def _submissions(context: click.Context) -> list[str]:
    """The latest first."""
    from launcher.record.find import list_submissions

    return [path.name for path in reversed(list_submissions(_root(context)))]


def _runs(context: click.Context, incomplete: str) -> list[str]:
    """Names of the latest submission's runs, or, after `SUBMISSION/`, of that submission's runs."""
    from launcher.record.find import list_runs

    submission, slash, _ = incomplete.rpartition("/")
    names = [submission] if slash else _submissions(context)[:1]
    prefix = f"{submission}/" if slash else ""
    return [prefix + path.name for name in names for path in list_runs(_root(context) / name)]


@_quiet
def submissions(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of submissions."""
    return _beginning(_submissions(context), incomplete)


@_quiet
def runs(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of the latest submission's runs, or `SUBMISSION/RUN`."""
    folders = [] if "/" in incomplete else [f"{name}/" for name in _submissions(context)]
    return _beginning([*_runs(context, incomplete), *folders], incomplete)


@_quiet
def submissions_and_runs(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of submissions and of runs."""
    folders = [] if "/" in incomplete else _submissions(context)
    return _beginning([*folders, *_runs(context, incomplete)], incomplete)


@_quiet
def job_words(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Job files, then `key=`; after `model=`, `data=` and `training=` the group's names, also for the last item of a
    list."""
    from trainer.config.keys import GROUPS, keys, option_names

    before = list(context.params.get("words") or ())
    # bash splits `model=res` into three words, and `model=` into two.
    group = before[-2] if before[-1:] == ["="] else before[-1] if before and incomplete == "" else ""
    if group in GROUPS:
        given, comma, last = incomplete.rpartition(",")
        return [f"{given}{comma}{name}" for name in _beginning(option_names(group), last)]
    key, equals, value = incomplete.partition("=")
    if equals:
        given, comma, last = value.rpartition(",")
        return [f"{key}={given}{comma}{n}" for n in _beginning(option_names(key), last)] if key in GROUPS else []
    files = [] if before else [str(path) for path in _job_files(incomplete)]
    dotted = [f"{each}=" for each in (*GROUPS, *keys()) if not each.startswith("choices")]
    return _beginning([*files, *dotted], incomplete)


def _job_files(incomplete: str) -> list[Path]:
    folder = Path(incomplete).parent if "/" in incomplete else Path("jobs")
    return sorted([*folder.glob("*.yaml"), *(Path().glob("*.yaml") if "/" not in incomplete else ())])


def script(shell: str, command: click.Command) -> str:
    """The completion script of `launcher` for `shell` (bash, zsh or fish)."""
    from click.shell_completion import get_completion_class

    shell_class = get_completion_class(shell)
    assert shell_class is not None
    return shell_class(command, {}, "launcher", "_LAUNCHER_COMPLETE").source()


@click.command("completion", short_help="Print the shell's completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(context: click.Context, shell: str) -> None:
    """Print a script that lets the shell complete commands, jobs, submissions and runs.

    bash: add `source <(launcher completion bash)` to ~/.bashrc. zsh: the same with zsh, in ~/.zshrc.
    fish: launcher completion fish > ~/.config/fish/completions/launcher.fish
    """
    click.echo(script(shell, context.find_root().command))
