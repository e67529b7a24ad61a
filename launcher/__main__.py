"""`launcher` and `python -m launcher`."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from trainer.base.brief import in_brief

MOST_ERRORS = 100
"""Lines of errors that are printed; a job can have thousands."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and end the process with the contract's exit code; no error shows a traceback."""
    import click

    from launcher.base import env_file
    from launcher.base.errors import EXIT_INTERRUPTED, LauncherError
    from launcher.base.text import plain_streams
    from launcher.cli.main import cli
    from trainer.base.errors import EXIT_FAILED, EXIT_OK, EXIT_USAGE, os_error
    from trainer.base.plural import counted

    gc.set_threshold(100_000)  # thousands of runs are many objects, hardly any in circles: a fifth of the time
    plain_streams()
    env_file.load()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)  # commands that stop something set handlers of their own
    try:
        code = cli.main(arguments, prog_name="launcher", standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else EXIT_OK)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        sys.exit(EXIT_USAGE)  # a job that lost its command has not succeeded
    except click.UsageError as error:
        context = f"\n{error.ctx.get_usage()}" if error.ctx else ""
        _end(f"error: {error.format_message()}{context}", EXIT_USAGE)
    except click.ClickException as error:
        _end(f"error: {error.format_message()}", EXIT_FAILED)
    except (click.Abort, KeyboardInterrupt):
        _end("stopped", EXIT_INTERRUPTED)
    except LauncherError as error:
        first, rest = (lines := str(error).split("\n"))[:MOST_ERRORS], lines[MOST_ERRORS:]
        more = f"\n… and {counted(len(rest), 'more line')} like these" if rest else ""
        _end("error: " + "\n".join(first) + more, error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing reads the rest of the output
        sys.exit(EXIT_FAILED)
    except Exception as error:
        if os.environ.get("LAUNCHER_DEBUG"):
            raise
        if isinstance(error, OSError) and error.filename is not None:
            _end(f"error: {os_error(error)}", EXIT_FAILED)
        if isinstance(error, FileNotFoundError) and not _has_working_directory():
            _end("error: the working directory was deleted; change to a folder that exists: cd", EXIT_FAILED)
        words = in_brief(str(error), 500) or "no message"
        name = "" if isinstance(error, OSError) else f"unexpected {type(error).__name__}: "
        _end(f"error: {name}{words}\nset LAUNCHER_DEBUG=1 to see the traceback", EXIT_FAILED)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _has_working_directory() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return False
    return True


def _end(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    # Python forgets the exit code and ends itself by SIGINT if Ctrl-C came within `exec`, as in imports of dataclasses.
    # While the signal is blocked it ends with 130.
    atexit.register(signal.pthread_sigmask, signal.SIG_BLOCK, {signal.SIGINT})
    main()
