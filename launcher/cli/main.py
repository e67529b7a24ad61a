"""The group of all commands. Each command imports what it needs beyond click."""

from __future__ import annotations

import click

from launcher import __version__
from launcher.cli import collect, completion, doctor, images, internal, plan, prune, status, submit, top


class InOrder(click.Group):
    """Lists its commands in the order in which they were added."""

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
    plan.plan, plan.matrix, doctor.doctor_command, status.attach, top.top,
    images.build, images.images_command, prune.cache_group, prune.prune_command,
    status.replay, completion.completion_command, internal.exec_command, internal.advance_command,
):  # fmt: skip
    cli.add_command(command)
