"""`launcher doctor`: checks this machine for training, and prints the fixes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.base import env_file
from launcher.base.text import wrapped
from launcher.cli.options import echo, json_option, print_json, runs_option
from launcher.record.find import cache_dir, own_cache
from trainer.base.plural import counted

if TYPE_CHECKING:
    from launcher.engines.base import Engine
    from launcher.host.checks import Check


INDENT = " " * 15
"""Before the second and later lines of a check."""


@click.command("doctor", short_help="Check this machine, print the fixes")
@click.option("--data", metavar="DIR", help="Data folder to check.")
@json_option
@runs_option
def doctor_command(data: str | None, as_json: bool, runs_root: Path) -> int:
    """Check this machine for training, and print the fix for each problem."""
    from launcher.host.checks import MARKS

    checks = examine(data, runs_root)
    if as_json:
        print_json([check.as_json() for check in checks])
    else:
        for check in checks:
            first, *rest = check.said.split("\n")
            lines = [f"{MARKS[check.level]} {check.what:12} {first}", *rest]
            lines += [f"{INDENT}→ {check.fix}"] if check.fix else []
            click.echo("\n".join(wrapped(line, INDENT) for line in lines))
        for line in env_file.notes():
            echo(line)
    return 1 if any(check.level == "missing" for check in checks) else 0


def examine(data: str | None, runs_root: Path) -> list[Check]:
    """Every check of this host and of each engine, in the order in which a user would meet the problems."""
    from launcher.engines import registry
    from launcher.host import checks

    of_engines: list[Check] = []
    packages_needed = True
    for name in registry.ENGINES:
        engine = registry.engine(name)
        its = engine.checks(runs_root)
        of_engines += [*its, *_of_data(engine, data, runs_root, its)]
        packages_needed = packages_needed and not engine.needs_no_packages(its)
    before = checks.before_engines(data, runs_root, packages_needed)
    if data:  # else a look at its top level is enough
        before = [_images(check, data, runs_root) if check.what == "data" else check for check in before]
    return [*before, *of_engines, *checks.after_engines(), _weights(runs_root)]


def _images(check: Check, data: str, runs_root: Path) -> Check:
    """The check of the data folder, with every image and label read, as submit does."""
    from launcher.engines import data_set
    from launcher.host.checks import Check

    if check.level != "ok":
        return check
    indent = f"\n{INDENT}"
    answers = data_set.ask(data, "auto", "", own_cache(runs_root), configurations=[()])
    if answers.errors:
        return Check("data", "missing", indent.join(answers.errors))
    if answers.unchecked:
        return Check("data", "note", answers.unchecked[0].removeprefix("note: "))
    said = f"{check.said}: every image and label is readable"
    if of_defaults := [line for own in (*answers.configurations, *answers.notes) for line in own]:
        return Check("data", "note", indent.join([f"{said}; a job with the default configuration:", *of_defaults]))
    return Check("data", "ok", said)


def _weights(runs_root: Path) -> Check:
    """Whether pretrained weights can be had."""
    from launcher.engines import readiness
    from launcher.host.checks import Check

    folder = cache_dir(runs_root) / "weights"
    stored = len(
        [path for path in folder.glob("*") if path.suffix == ".safetensors" or path.name.startswith("models--")]
    )
    have = f"{folder}: {counted(stored, 'model')}"
    if why := readiness.why_no_hub():
        fix = f"NAME.safetensors in {folder}, model.weights=FILE, or model.pretrained=false"
        return Check("weights", "note", f"{have}; {why}", fix)
    return Check("weights", "ok", f"{have}; others come from the hub")


def _of_data(engine: Engine, data: str | None, runs_root: Path, its: Sequence[Check]) -> list[Check]:
    """Whether runs of an engine that works could read the data folder."""
    from launcher.base.errors import RunError
    from launcher.host.checks import Check

    if (
        not data
        or not Path(data).is_dir()
        or not any((check.what, check.level) == (engine.name, "ok") for check in its)
    ):
        return []
    try:
        found = engine.check_data(data, runs_root)
    except RunError as error:
        return [Check("data", "missing", f"{engine.where}: {error}")]
    return [Check("data", "note", f"{engine.where}: {note.removeprefix('note: ')}") for note in found]
