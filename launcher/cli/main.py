"""The group of all commands. Each command imports what it needs beyond click."""

from __future__ import annotations

import click

from launcher import __version__
from launcher.cli import collect, completion, doctor, images, internal, plan, prune, status, submit, top
from launcher.cli.history import diff, listing, why

OTHER_WORDS = {
    "leaderboard": "collect", "results": "collect", "champion": "collect", "report": "collect",
    "explain": "why", "reason": "why", "compare": "diff",
    "ls": "list", "submissions": "list", "history": "list",
    "ps": "status", "runs": "status", "show": "status", "watch": "attach",
    "run": "submit", "start": "submit", "train": "submit", "log": "logs", "tail": "logs",
    "cancel": "stop", "kill": "stop", "continue": "resume", "retry": "resume", "restart": "resume",
    "check": "plan", "validate": "plan", "dry-run": "plan", "clean": "prune", "rm": "prune", "delete": "prune",
}  # fmt: skip
"""What people type for a command that has another name."""


class InOrder(click.Group):
    """Lists its commands in the order in which they were added, and knows other words for them."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """See click."""
        meant = OTHER_WORDS.get(args[0].lower())
        if meant is not None and self.get_command(ctx, args[0]) is None:
            does = self.commands[meant].get_short_help_str()
            ctx.fail(f"No such command '{args[0]}'. Did you mean '{meant}' ({does})?")
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """See click."""
        return list(self.commands)


@click.group(
    cls=InOrder,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, message="%(version)s")
def cli() -> None:
    """Train document classifiers as batch jobs: expand a job file into runs, execute them, collect the results."""


for command in (
    submit.submit, status.status, status.logs, submit.stop, submit.resume, collect.collect_command,
    listing.list_command, why.why, diff.diff,
    plan.plan, plan.matrix, plan.schema, doctor.doctor_command, status.attach, top.top,
    images.build, images.images_command, prune.cache_group, prune.prune_command,
    status.replay, completion.completion_command, internal.exec_command, internal.advance_command,
):  # fmt: skip
    cli.add_command(command)
