"""Whether runs can train on a data folder, and steps predict its test images: asks the trainer, once for all runs,
before the first starts."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launcher.base.errors import DataFolderError
from launcher.engines import process
from launcher.host.checks import missing_packages
from launcher.job.document import in_order
from launcher.job.matrix import override_value
from launcher.record import folders
from launcher.record.find import own_cache
from launcher.record.request import RunRequest
from trainer.base.errors import EXIT_DATA, EXIT_OK
from trainer.base.files import json_text, to_bytes

QUIET = 5.0
"""Seconds without a word about the images."""
Say = Callable[[str], object]
Blame = Callable[[RunRequest, str], str]
"""Puts the place to blame before an error of a run."""


@dataclass(frozen=True)
class Answers:
    """Errors of a data folder, and notes on what could not be checked. Lists per configuration are in the order of the
    configurations."""

    errors: list[str] = field(default_factory=list)
    configurations: list[list[str]] = field(default_factory=list)
    """The errors of each configuration."""
    notes: list[list[str]] = field(default_factory=list)
    """The notes of each configuration."""
    test: list[str] = field(default_factory=list)
    """Errors of the test images."""
    unchecked: list[str] = field(default_factory=list)


def check(
    requests: Sequence[RunRequest], runs_root: Path, say: Say, blame: Blame, wait: float | None = None
) -> list[str]:
    """Check the data of these runs and steps, for at most `wait` seconds a folder. Returns notes. Raises
    DataFolderError with all errors: first those of values in the job, then those of files."""
    by_folder: dict[tuple[str, str], list[RunRequest]] = {}
    for request in requests:
        if request.kind == "train":
            folder = str(request.config.get("root") or request.data_dir)
            by_folder.setdefault((folder, str(request.config.get("format", "auto"))), []).append(request)
    predicting: dict[str, list[RunRequest]] = {}
    for request in requests:
        if request.kind == "predict" and request.data_dir:
            predicting.setdefault(request.data_dir, []).append(request)
            if request.data_dir not in [folder for folder, _ in by_folder]:
                by_folder[request.data_dir, ""] = []
    of_values: list[str] = []
    of_files: list[str] = []
    notes: list[str] = []
    for (folder, kind), same in by_folder.items():
        by_words: dict[tuple[str, ...], RunRequest] = {}
        for request in same:
            by_words.setdefault(_words(request), request)
        steps = predicting.pop(folder, [])
        answers = ask(folder, kind, _digest(same), own_cache(runs_root), say, list(by_words), bool(steps), wait)
        of_files += [*answers.errors, *_of_steps(steps, answers.test, blame)]
        for request, errors, own_notes in zip(by_words.values(), answers.configurations, answers.notes, strict=False):
            for line in errors:
                placed = blame(request, line)
                (of_files if placed == line else of_values).append(placed)
            notes += [f"note: {blame(request, line)}" for line in own_notes]
        notes += answers.unchecked
    if errors := [*filter(None, [in_order(of_values)]), *dict.fromkeys(of_files)]:
        raise DataFolderError("\n".join(errors))
    return list(dict.fromkeys(notes))


def _of_steps(steps: Sequence[RunRequest], errors: Sequence[str], blame: Blame) -> list[str]:
    """The errors of the test images, with the step that would predict them."""
    return [blame(steps[0], error) for error in errors] if steps else []


TRANSFORMS = ("data.train_transforms", "data.val_transforms")


def _words(request: RunRequest) -> tuple[str, ...]:
    """The overrides that determine the split and the number of steps of a training run, and its own transforms."""
    config = request.config
    values = {"training.batch_size": config.get("batch_size")}
    values |= {"data.folds": config.get("folds"), "data.fold": config.get("fold"), **config.get("splitting", {})}
    words = [f"{key}={override_value(value)}" for key, value in values.items() if value is not None]
    if any(word.lstrip("+~").startswith(TRANSFORMS) for word in request.overrides):
        size = ("data=", "data.img_size=", *TRANSFORMS)
        words = [*(word for word in request.overrides if word.lstrip("+~").startswith(size)), *words]
    return tuple(words)


def _digest(requests: Iterable[RunRequest]) -> str:
    """A digest of the data of all runs; empty if it is unknown."""
    digests = sorted({request.data for request in requests})
    return hashlib.sha256(repr(digests).encode()).hexdigest() if digests and all(digests) else ""


def ask(
    folder: str, kind: str, digest: str, cache: Path, say: Say = lambda line: None,
    configurations: Sequence[Sequence[str]] = (), test: bool = False, wait: float | None = None,
) -> Answers:  # fmt: skip
    """Let the trainer read every training image and label of a data folder, split them as each of these configurations
    (overrides) does, and read the test images if `test`. Calls `say` if it takes long, and ends after `wait` seconds
    without an answer.

    `kind` is the value of `data.format`; empty: nothing is trained. A file in `cache`, which no run can write to,
    remembers a good data set by the `digest` of its content (empty: unknown).
    """
    asked = json_text([list(words) for words in configurations])
    known = hashlib.sha256(to_bytes(json_text([digest, kind, asked, _stamp(Path(folder)) if test else ""])))
    passed = cache / "checked" / f"data-{known.hexdigest()}"
    if digest and passed.exists():
        return Answers()
    if missing_packages():
        return _unchecked(folder, "here, where the trainer is not installed")
    command = [*process.ENTRY, "check-data", "--quick", "--configurations", "--data", folder]
    command += [*(["--test"] if test else []), *([f"data.format={kind}"] if kind else ["--only-test"])]
    environment = {**os.environ, "CACHE_DIR": str(cache)}
    try:
        code, said, errors = _result(
            command, environment, asked, lambda: say(f"{folder}: reading every image, once for all runs …"), wait
        )
    except subprocess.TimeoutExpired:
        return Answers()
    except OSError as error:
        return _unchecked(folder, f"({error.strerror})")
    try:
        answers = _parsed(said)
    except (ValueError, TypeError, KeyError, AttributeError):
        code = code or 1
    if code not in (EXIT_OK, EXIT_DATA):
        last = errors.removeprefix("error: ").splitlines()[-1:] or [f"exit code {code}"]
        return _unchecked(folder, f"({last[0]})")
    if digest and code == EXIT_OK and not any(answers.notes):
        with contextlib.suppress(OSError):
            passed.parent.mkdir(parents=True, exist_ok=True)
            folders.write(passed, to_bytes(f"{folder}\n"), 2)
    return answers


def _unchecked(folder: str, why: str) -> Answers:
    return Answers(unchecked=[f"note: {folder}: its images are not checked {why}; each run does so"])


def _parsed(text: str) -> Answers:
    """Raises ValueError, TypeError, KeyError or AttributeError."""
    content = json.loads(text or "{}")
    own = content.get("configurations", [])
    return Answers(
        content.get("errors", []), [answer["errors"] for answer in own], [answer["notes"] for answer in own],
        content.get("test", []),
    )  # fmt: skip


def _stamp(folder: Path) -> str:
    """Changes whenever the test images do."""
    lines = []
    for path in (folder / "sample_submission.csv", *sorted((folder / "test").rglob("*"))):
        with contextlib.suppress(OSError):
            found = path.stat()
            lines.append((str(path), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino))
    return hashlib.sha256(to_bytes(repr(lines))).hexdigest()


def _result(
    command: Sequence[str], environment: dict[str, str], asked: str, tell: Callable[[], object], wait: float | None
) -> tuple[int, str, str]:
    """Exit code, output and errors of a command with `asked` on its standard input. Calls `tell` after some seconds.
    Raises OSError, and subprocess.TimeoutExpired after `wait` seconds more."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    try:
        try:
            said, errors = process.communicate(to_bytes(asked), timeout=QUIET)
        except subprocess.TimeoutExpired:
            tell() if wait is None else None
            said, errors = process.communicate(timeout=wait)
    finally:  # also after Ctrl-C
        if process.poll() is None:
            process.kill()
            process.wait()
    text, errors_text = (output.decode(errors="surrogateescape").strip() for output in (said, errors))
    return process.returncode, text, errors_text
