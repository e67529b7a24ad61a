"""Resume: which changes of the configuration a run can continue with, and the files that it continues from."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from trainer.base.errors import ConfigError
from trainer.base.files import link_or_copy, sha256
from trainer.base.plural import counted
from trainer.config.plain import to_dict
from trainer.config.schema import Config
from trainer.data.rows import Table
from trainer.models import checkpoint
from trainer.scores import val_predictions
from trainer.scores.validation import Outcome, certainty
from trainer.training import keep

HONOURED = frozenset(
    {
        "choices",  # names of groups; the values of their keys count
        "data.allowed_leaks",
        "data.cache_gb",
        "data.format",  # the split's fingerprint is compared
        "data.root",
        "device",
        "devices",
        "resume",
        "training.channels_last",
        "training.compile",
        "training.epochs",
        "training.grad_checkpointing",
        "training.gradient_clip",
        "training.keep_top",
        "training.lr",
        "training.max_steps",
        "training.micro_batch",
        "training.min_lr",
        "training.num_workers",
        "training.patience",
        "training.pin_memory",
        "training.precision",
        "training.scheduler",
        "training.validate_per_epoch",
        "training.warmup_epochs",
        "training.warmup_start",
        "training.weight_decay",
    }
)
"""Keys that a resumed run can take a new value of, from its next step on. Any other key is refused: it belongs to the
weights, the optimizer's state, the order of the images, the images themselves, or the figure that chose the best."""

TEACHERS = "training.teachers"
FILES = ("model.weights", TEACHERS)
"""Keys that name files. Another path is no change if the content is the same."""

TRANSFORMS = ("data.train_transforms.", "data.val_transforms.")

MISSING = "(missing)"


@dataclass(frozen=True)
class Change:
    """A key with its old and its new value, as text."""

    key: str
    old: str
    new: str

    @property
    def honoured(self) -> bool:
        return any(self.key == key or self.key.startswith(f"{key}.") for key in HONOURED)

    def __str__(self) -> str:
        return f"{self.key}: {self.old} → {self.new}"


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a configuration by dotted key. Lists are values."""
    keys: dict[str, Any] = {}
    for key, value in config.items():
        keys |= {f"{key}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {key: value}
    return keys


def changes(
    old: Mapping[str, Any], new: Mapping[str, Any], files: Mapping[str, Sequence[str]] | None = None
) -> list[Change]:
    """The keys whose value differs between two configurations. A key that one of them does not have counts with the
    default of the schema, if there is one. Sizes inside the transforms that follow from another `data.img_size` are not
    listed beside it. `files`: the digests of the files that `old` names, by key. Teachers whose files have another
    content are other teachers; weights are read only at the start of a run."""
    before, now, defaults = flat(old), flat(new), flat(to_dict(Config()))
    contents = digests(new) if files else {}
    found: list[Change] = []
    for key in dict.fromkeys([*now, *before]):
        was, is_now = (values.get(key, defaults.get(key, MISSING)) for values in (before, now))
        if files and key in files and contents.get(key) == list(files[key]):
            continue
        if was != is_now:
            found += _nested(key, was, is_now)
        elif files and key == TEACHERS and key in files and key in contents:
            found += [
                Change(f"{key}.{place}", f"{name} of SHA-256 {old_digest[:12]}", f"the file has {new_digest[:12]}")
                for place, (name, old_digest, new_digest) in enumerate(zip(was, files[key], contents[key], strict=True))
                if old_digest != new_digest
            ]
    return _without_derived(found)


def _without_derived(found: Sequence[Change]) -> list[Change]:
    """The changes without those inside the transforms that follow from another data.img_size: the sizes there are
    `${data.img_size}` in the data groups."""
    size = next((change for change in found if change.key == "data.img_size"), None)
    if size is None:
        return list(found)
    return [
        change
        for change in found
        if not (change.key.startswith(TRANSFORMS) and (change.old, change.new) == (size.old, size.new))
    ]


def _nested(key: str, old: Any, new: Any) -> Iterator[Change]:
    """The differences inside two values, by keys below `key`."""
    if isinstance(old, dict) and isinstance(new, dict):
        for inner in dict.fromkeys([*old, *new]):
            if old.get(inner, MISSING) != new.get(inner, MISSING):
                yield from _nested(f"{key}.{inner}", old.get(inner, MISSING), new.get(inner, MISSING))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for place, (was, is_now) in enumerate(zip(old, new, strict=True)):
            if was != is_now:
                yield from _nested(f"{key}.{place}", was, is_now)
    elif isinstance(old, list) and isinstance(new, list):
        before, now = list(map(_text, old)), list(map(_text, new))
        for tag, a, b, c, d in SequenceMatcher(a=before, b=now, autojunk=False).get_opcodes():
            if tag != "equal":
                yield Change(f"{key}.{a}", ", ".join(before[a:b]) or MISSING, ", ".join(now[c:d]) or MISSING)
    else:
        yield Change(key, _text(old), _text(new))


def _text(value: Any) -> str:
    """A value as on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_text(inner)}' for key, inner in value.items())}}}"
    return f"[{', '.join(map(_text, value))}]" if isinstance(value, list) else str(value)


def digests(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """SHA-256 of the files that a configuration names, by key. Without those that cannot be read."""
    values, found = flat(config), {}
    for key in FILES:
        names = values.get(key) or []
        paths = [Path(name).expanduser() for name in ([names] if isinstance(names, str) else names)]
        if paths and all(path.is_file() for path in paths):
            found[key] = [sha256(path) for path in paths]
    return found


def check(state: Mapping[str, Any], config: Config, path: Path) -> list[Change]:
    """The changes of the configuration since the last.ckpt at `path`, all of them honoured.

    Raises ConfigError that lists the keys which the run cannot take a new value of.
    """
    found = changes(state["config"], to_dict(config), state.get("files"))
    refused = [change for change in found if not change.honoured]
    if not refused:
        return [change for change in found if change.key != "resume"]
    lines = "\n".join(f"  {change}" for change in refused)
    back = " ".join(f"{c.key}={c.old}" for c in refused if c.key in flat(to_dict(config)) and _plain(c.old))
    raise ConfigError(
        f"resume: {path} was trained with another configuration; a run cannot continue with a new value of\n{lines}\n"
        f"to continue, leave them as they were{f': {back}' if back else ''}\n"
        f"to train with the new values from the beginning, {start_again(config)}"
    )


def _plain(text: str) -> bool:
    return text != MISSING and not text.startswith(("[", "{")) and len(text) < 60


def start_again(config: Config) -> str:
    """What to type to train from the beginning."""
    return f"remove resume={config.resume} and set RUN_DIR to another folder"


def check_length(progress: Mapping[str, Any], config: Config, steps_per_epoch: int, total: int) -> None:
    """Raises ConfigError if the run has already trained more steps than the new configuration has."""
    done = progress["step"]
    if done <= total:
        return
    limit = config.training.max_steps
    key = f"training.max_steps={limit}" if limit == total else f"training.epochs={config.training.epochs}"
    least = f"training.max_steps={done}" if limit == total else f"training.epochs={-(-done // steps_per_epoch)}"
    raise ConfigError(
        f"resume: {key}: the run has trained {counted(done, 'step')} already ({steps_per_epoch} an epoch); use {least} "
        f"or more, or {start_again(config)}"
    )


def check_data(state: Mapping[str, Any], table: Table, split_fingerprint: str, path: Path, config: Config) -> None:
    """Raises ConfigError if the images are not those of the last.ckpt at `path`, or have other classes, other labels or
    another order: the draws of an image depend on its row."""
    if state["class_names"] != table.class_names or state["split_fingerprint"] != split_fingerprint:
        what = "other data or another split; use the data and split of the first start"
    elif state.get("labels", table.labels) != table.labels:
        what = "other labels of the classes; use the labels of the first start"
    elif state.get("order", order := order_of(table)) != order:
        what = "the images in another order; use the order of the first start"
    else:
        return
    raise ConfigError(f"resume: {path} has {what}, or {start_again(config)}")


def order_of(table: Table) -> str:
    """A digest of the images' IDs in their order."""
    return hashlib.sha256(repr(table.ids).encode(errors="surrogateescape")).hexdigest()[:16]


def joined(old: str | None, new: str) -> str:
    """The origin of a result that was trained with the code or data `old` and then `new`."""
    if not old:
        return new
    return old if new in old.split("+") else f"{old}+{new}"


def carry(source: Path, run_dir: Path, progress: dict[str, Any], touch: bool = True) -> str:
    """Make best.ckpt and top/ in `run_dir` those that `progress` (of a last.ckpt in `source`) names.

    A process may have been killed between two of these files: best.ckpt may be newer than last.ckpt, and then the best
    of last.ckpt is in top/. Lost checkpoints are removed from `progress`; if the best is lost, the next best takes its
    place, or the next validation. Returns a note about it, else an empty string. Without `touch` only `progress`
    changes.
    """
    names = [name for _, name in progress["top"]]
    found = {name: path for name in names if (path := _find(source, name)) is not None}
    progress["top"] = [[score, name] for score, name in progress["top"] if name in found]
    note = ""
    if names and names[0] not in found:
        note = f"{names[0]}, the best checkpoint so far, is not in {source}; "
        if found:
            first = next(iter(found))
            progress |= _as_best(found[first], progress["top"][0][0], progress["best"]["monitor"])
            note += f"{first} takes its place"
        else:
            progress |= {"best": {}, "best_score": None, "best_epoch": progress["epoch"]}
            note += "the best is chosen from the validations that follow"
    if touch and found:
        _bring(found, run_dir)
    return note


def _bring(found: Mapping[str, Path], run_dir: Path) -> None:
    """Put the checkpoints at these paths into `run_dir`: the first as best.ckpt, the others into top/ by name."""
    for place, (name, path) in enumerate(found.items()):
        target = run_dir / "top" / name if place else run_dir / "best.ckpt"
        if path != target:
            link_or_copy(path, target)
        if target.name == "best.ckpt" and (path != target or not (run_dir / "val_predictions.npz").exists()):
            loaded = checkpoint.load(target, mapped=True)
            val_predictions.write(run_dir / "val_predictions.npz", loaded.validation, loaded.class_names)
    keep.remove_others(run_dir, list(found)[1:])


def _as_best(path: Path, score: float, monitor: str) -> dict[str, Any]:
    """The progress of a run whose best checkpoint is the one at `path`."""
    loaded = checkpoint.load(path, mapped=True)
    values = {key: value for key, value in loaded.metrics.items() if key not in ("epoch", "step")}
    stored = loaded.validation
    outcome = Outcome(
        list(range(len(stored["ids"]))), stored["targets"], stored["probabilities"], stored.get("corrupted")
    )
    best = {**values, "monitor": monitor, "score": score, **certainty(outcome)}
    return {"best": best, "best_score": score, "best_epoch": loaded.metrics["epoch"]}


def _find(folder: Path, name: str) -> Path | None:
    """The checkpoint that has this name in top/: best.ckpt if it is of the same step, else the file in top/."""
    best, other = folder / "best.ckpt", folder / "top" / name
    if best.is_file() and _step(best) == _step_in(name):
        return best
    return other if _step(other) == _step_in(name) else None


def _step(path: Path) -> int | None:
    try:
        return int(checkpoint.load(path, mapped=True).metrics["step"])
    except (ConfigError, KeyError, TypeError, ValueError):
        return None


def _step_in(name: str) -> int | None:
    match = re.search(r"-step(\d+)-", name)
    return int(match[1]) if match else None
