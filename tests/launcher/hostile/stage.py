"""A stage for hostile runs: a run directory that another user owns, files that it must not reach, and a watch on them.

As a script: many tries of each attack on each file. `python -m tests.launcher.hostile.stage --tries 10000`; with
`--commands 100` it is the command line that is attacked.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import faulthandler
import io
import json
import os
import select
import signal
import socket
import stat
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from launcher.__main__ import main as launcher_main
from launcher.base.errors import RunError
from launcher.engines.docker import shared_cache
from launcher.record import folders, journal, predictions, trainer_figures, trainer_files
from launcher.record.journal import append_event, create_run
from launcher.record.request import RunRequest
from launcher.results import champion, collect

SECRET = json.dumps({"val_f1": 0.987654, "epoch": 987654, "epochs": 987654, "members": []}) + " for root alone\n"
USER = (1000, 1000) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
RUNS = ("001-a", "002-b")
ACCESS, MODIFY = 1, 2
"""Events of inotify: somebody reads a file, or writes it."""


LIBRARY = ctypes.CDLL(None, use_errno=True)


class Watch:
    """Events of reading and writing of files and folders, by inotify(7). Where there is none: nothing."""

    def __init__(self, *paths: Path) -> None:
        self.descriptor = -1
        if sys.platform == "linux":
            self.descriptor = LIBRARY.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
            for path in paths:
                assert LIBRARY.inotify_add_watch(self.descriptor, os.fsencode(path), ACCESS | MODIFY) >= 0

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def events(self) -> list[int]:
        masks = []
        while self.descriptor >= 0 and select.select([self.descriptor], [], [], 0)[0]:
            content = os.read(self.descriptor, 2**16)
            while content:
                _, mask, _, length = struct.unpack_from("iIII", content)
                masks.append(mask)
                content = content[16 + length :]
        return masks


class Stage:
    """`runs/sub` with two runs that have succeeded, whose folders belong to `USER`."""

    def __init__(self, root: Path) -> None:
        root.chmod(0o755)
        self.root, self.runs = root, root / "runs"
        self.victims = root / "victims"
        self.submission = self.runs / "sub"
        for name in RUNS:
            run_dir = self.submission / name
            create_run(run_dir, RunRequest(name, 1, "train", ["train"], config={"model": "a"}, identity="i", data="d"))
            for state in ("starting", "running", "succeeded"):
                append_event(run_dir, state)  # type: ignore[arg-type]
            self.fill(run_dir)
        (self.submission / "submission.json").write_text(json.dumps({"name": "sub", "engine": "native"}))
        self.victims.mkdir()
        (self.victims / "secret").write_text(SECRET)
        (self.victims / "secret").chmod(0o600)
        (self.victims / "report.html").write_text(SECRET)
        (self.victims / "report.html").chmod(0o600)
        self.before = self.facts()
        self.watch = Watch(self.victims / "secret", self.victims / "report.html")

    @property
    def run_dir(self) -> Path:
        return self.submission / RUNS[0]

    def fill(self, run_dir: Path) -> None:
        """Files as a trainer leaves them."""
        for name, text in (
            ("metrics.json", json.dumps({"val_f1": 0.5, "seconds": 1, "split_fingerprint": "s", "epochs": 3})),
            ("progress.json", json.dumps({"epoch": 1, "epochs": 3})),
            ("log.txt", "working\n"),
            ("best.ckpt", "weights"),
            ("last.ckpt", "state"),
            ("history.csv", "epoch\n1\n"),
            ("config.yaml", "seed: 1\n"),
            ("ensemble.json", '{"members": []}'),
        ):
            (run_dir / name).write_text(text)
        for name in ("events.jsonl", "exec.lock", "stop.requested"):  # these names mean nothing here
            (run_dir / name).write_text("{}")
        np.savez(
            run_dir / "val_predictions.npz", ids=np.array(["a"]), targets=np.array([0]), class_names=np.array(["x"]),
            probabilities=np.ones((1, 1)), split_fingerprint=np.array("s"),
        )  # fmt: skip
        (run_dir / "analysis_results").mkdir(exist_ok=True)
        (run_dir / "analysis_results" / "report.html").write_text("report")
        (run_dir / "evil").mkdir(exist_ok=True)
        trainer_files.hand_over(run_dir, USER)

    def facts(self) -> list[tuple[object, ...]]:
        """What must stay: content, owner, mode and times of the victims, and their number."""
        found = []
        for path in (self.victims, *sorted(self.victims.iterdir())):
            facts = path.stat()
            found.append((path.name, facts.st_uid, facts.st_gid, stat.S_IMODE(facts.st_mode), facts.st_mtime_ns))
        return found

    def check(self) -> None:
        """No victim was read, written, changed or published, and none is new."""
        events = self.watch.events()
        assert not events, f"a victim was read or written {len(events)} times"
        assert self.facts() == self.before
        for path in self.runs.rglob("*"):
            if path.is_file() and self.run_dir not in path.parents:
                assert b"for root alone" not in _content(path), path

    @contextmanager
    def attacked(self, *names: str) -> Iterator[None]:
        """A process of the run's user exchanges these names with `evil/<name>`, and every temporary file with a link,
        while the block runs."""
        ready, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                if os.geteuid() == 0:
                    os.setgroups([])
                    os.setgid(USER[1])
                    os.setuid(USER[0])
                os.chdir(self.run_dir)
                os.write(write, b"x")
                exchange(names, str(self.victims / "secret"))
            finally:
                os._exit(1)
        try:
            os.read(ready, 1)
            yield
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "the attacker has ended"
        finally:
            os.close(ready)
            os.close(write)
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)


def exchange(names: Sequence[str], secret: str) -> None:
    """The code of a hostile run, in its directory: exchanges names as fast as it can, until it is killed."""
    pairs = [(os.fsencode(name), os.fsencode(f"evil/{name}")) for name in names]
    while True:
        for _ in range(50):
            for name, evil in pairs:
                LIBRARY.renameat2(-100, name, -100, evil, 2)  # AT_FDCWD, RENAME_EXCHANGE
        for entry in os.scandir("."):
            if entry.name.startswith("."):
                with suppress(OSError):
                    Path(entry.name).unlink()
                with suppress(OSError):
                    Path(entry.name).symlink_to(secret)


def _content(path: Path) -> bytes:
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            return file.read(10**6)
    return b""


# -- what a run leaves in the place of a file


def link(stage: Stage, evil: Path) -> None:
    evil.symlink_to(stage.victims / "secret")


def link_to_a_folder(stage: Stage, evil: Path) -> None:
    evil.symlink_to(stage.victims)


def dangling_link(stage: Stage, evil: Path) -> None:
    evil.symlink_to(stage.victims / "new")


def hard_link(stage: Stage, evil: Path) -> None:
    """As a host allows it that does not protect hard links (fs.protected_hardlinks=0)."""
    evil.hardlink_to(stage.victims / "secret")
    stage.before = stage.facts()


def pipe(stage: Stage, evil: Path) -> None:
    os.mkfifo(evil)
    os.chown(evil, *USER)


def unix_socket(stage: Stage, evil: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(evil.parent)  # a path of a socket is short
        server.bind(evil.name)
        os.chdir(here)
    os.chown(evil, *USER)


def device(stage: Stage, evil: Path) -> None:
    """Endless zeros. A container cannot make one; root can, for instance from a backup."""
    os.mknod(evil, stat.S_IFCHR | 0o666, os.makedev(1, 5))


def folder(stage: Stage, evil: Path) -> None:
    evil.mkdir()
    os.chown(evil, *USER)


def sparse(stage: Stage, evil: Path) -> None:
    """8 TiB that take no room on the disk."""
    with evil.open("wb") as file:
        file.truncate(8 * 2**40)
    os.chown(evil, *USER)


AS_ROOT = (hard_link, device)
ATTACKS: tuple[Callable[[Stage, Path], None], ...] = (
    link, link_to_a_folder, dangling_link, hard_link, pipe, unix_socket, device, folder, sparse,
)  # fmt: skip


# -- what the launcher does with each file


def _reuse(name: str) -> Callable[[Stage], None]:
    def work(stage: Stage) -> None:
        place = stage.runs / "new" / "001-a"
        place.mkdir(parents=True, exist_ok=True)
        with suppress(RunError, OSError):
            trainer_files.link(stage.run_dir, name, place)
            assert b"for root alone" not in _content(place / name)
        (place / name).unlink(missing_ok=True)

    return work


def _metrics(stage: Stage) -> None:
    assert trainer_figures.read_metrics(stage.run_dir).get("val_f1") in (None, 0.5)


def _progress(stage: Stage) -> None:
    progress = trainer_figures.read_progress(stage.run_dir)
    assert progress is None or progress.epoch == 1


def _predictions(stage: Stage) -> None:
    predictions.load(stage.run_dir)


def _log(stage: Stage) -> None:
    assert "for root alone" not in trainer_files.log_end(stage.run_dir)
    with suppress(RunError):
        trainer_files.write_log(stage.run_dir, "a line\n")


def _champion(stage: Stage) -> None:
    row = {"run": RUNS[0], "checkpoint": f"{RUNS[0]}/best.ckpt", "monitor": "val_f1", "score": 0.5}
    champion.crown(stage.submission, row, stage.runs / "champion", False, "", print)
    assert b"for root alone" not in _content(stage.runs / "champion" / "current" / "best_model.ckpt")


def _prune(stage: Stage) -> None:
    with suppress(RunError):
        if trainer_files.size(stage.run_dir, "last.ckpt") is not None:
            trainer_files.remove(stage.run_dir, "last.ckpt")
    with suppress(OSError):
        descriptor = os.open(stage.run_dir / "last.ckpt", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.close(descriptor)


def _ensemble(stage: Stage) -> None:
    trainer_figures.ensemble_members(stage.run_dir / "ensemble.json")
    collect.places(stage.submission)


def _report(stage: Stage) -> None:
    trainer_files.has(stage.run_dir, "analysis_results/report.html")
    with suppress(RunError):
        trainer_files.read(stage.run_dir, "analysis_results/report.html", 1000)


def _end(stage: Stage) -> None:
    """The end of an attempt: the copies in the run directory, and the journal."""
    with folders.own_state(stage.run_dir) as own:
        journal.copy_to_run_dir(own, stage.run_dir)
    assert journal.read_status(stage.run_dir).state == "succeeded"


def _handed_over(stage: Stage) -> None:
    for user in (2000, 2000), USER:
        with suppress(OSError):
            trainer_files.hand_over(stage.run_dir, user)


def _cache(stage: Stage) -> None:
    """The folder of a run is in the place of the cache that runs share: the user can write to both."""
    shared_cache.give_folders(stage.run_dir, USER)


FILES: dict[str, tuple[str, Callable[[Stage], None]]] = {
    "metrics.json": ("metrics.json", _metrics),
    "progress.json": ("progress.json", _progress),
    "val_predictions.npz": ("val_predictions.npz", _predictions),
    "log.txt": ("log.txt", _log),
    "best.ckpt, champion": ("best.ckpt", _champion),
    "best.ckpt, reuse": ("best.ckpt", _reuse("best.ckpt")),
    "history.csv, reuse": ("history.csv", _reuse("history.csv")),
    "config.yaml, reuse": ("config.yaml", _reuse("config.yaml")),
    "last.ckpt, prune": ("last.ckpt", _prune),
    "ensemble.json": ("ensemble.json", _ensemble),
    "a report": ("analysis_results", _report),
    "status.json, copy": ("status.json", _end),
    "run.json, copy": ("run.json", _end),
    "events.jsonl": ("events.jsonl", _end),
    "exec.lock": ("exec.lock", _end),
    "stop.requested": ("stop.requested", _end),
    "a file, handed over": ("history.csv", _handed_over),
    "a folder, handed over": ("analysis_results", _handed_over),
    "a folder of the cache": ("analysis_results", _cache),
}
"""What is attacked: the name that is exchanged, and what the launcher does meanwhile."""


def attack(root: Path, how: Callable[[Stage, Path], None], files: Sequence[str], tries: int) -> None:
    """Attack files of a run in one way, while the launcher uses each of them `tries` times. Raises AssertionError."""
    with staged(root) as stage:
        names = sorted({FILES[what][0] for what in files})
        for name in names:
            how(stage, stage.run_dir / "evil" / name)
        with stage.attacked(*names):
            for _ in range(tries):
                for what in files:
                    FILES[what][1](stage)
        stage.check()


@contextmanager
def staged(root: Path) -> Iterator[Stage]:
    stage = Stage(root)
    faulthandler.dump_traceback_later(3600, exit=True)  # a launcher that hangs is killed, with its traceback
    try:
        yield stage
    finally:
        faulthandler.cancel_dump_traceback_later()
        stage.watch.close()


def attack_commands(root: Path, how: Callable[[Stage, Path], None], tries: int) -> int:
    """Attack all files at once in one way, while the commands of the launcher use them. Returns the calls."""
    names = sorted({name for name, _ in FILES.values()})
    commands = (["status", "--json"], ["collect"], ["logs", "sub/001-a"], ["prune", "--yes"], ["replay"])
    with staged(root) as stage:
        for name in names:
            how(stage, stage.run_dir / "evil" / name)
        with stage.attacked(*names):
            for _ in range(tries):
                for words in commands:
                    printed = printed_by([*words, "--runs", str(stage.runs)])
                    assert "for root alone" not in printed and "987654" not in printed, printed
                    assert "unexpected" not in printed and "Traceback" not in printed, printed
        stage.check()
    return tries * len(commands)


def printed_by(words: list[str]) -> str:
    """What a command of the launcher prints."""
    out = io.StringIO()
    before = signal.getsignal(signal.SIGTERM)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), suppress(SystemExit):
            launcher_main(words)
    finally:
        signal.signal(signal.SIGTERM, before)
    return out.getvalue()


def main() -> None:
    os.environ["DOCKER_HOST"] = "unix:///nonexistent"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=0, help="for each file and attack, through functions")
    parser.add_argument(
        "--commands", type=int, default=0, help="calls of each command for each attack, on all files at once"
    )
    parser.add_argument("--only", default="", help="what is attacked, or how")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for how in ATTACKS:
        if os.geteuid() != 0 and how in AS_ROOT:
            continue
        for what in FILES if arguments.tries else ():
            if arguments.only not in f"{what} {how.__name__}":
                continue
            began = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="hostile-") as root:
                attack(Path(root), how, [what], arguments.tries)
            print(f"{how.__name__:18} {what:24} {arguments.tries} tries  {time.monotonic() - began:.1f} s", flush=True)
        if arguments.commands and arguments.only in how.__name__:
            with tempfile.TemporaryDirectory(prefix="hostile-") as root:
                calls = attack_commands(Path(root), how, arguments.commands)
            print(f"{how.__name__:18} command line, all files: {calls} calls", flush=True)


if __name__ == "__main__":
    main()
