"""Job files that nobody meant: whatever stands in one, a clear error comes out, or a plan; and never half a submission."""

from __future__ import annotations

import copy
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher.base.errors import Errors, JobError, MachineError, RunError
from launcher.engines import registry
from launcher.engines.base import Choice
from launcher.host.machine import BUILT_IN, Machine
from launcher.job import expansion, remarks, spec
from launcher.record.journal import create_run
from launcher.record.request import RunRequest
from launcher.supervise import submission, together

MACHINES = [*BUILT_IN.values(), Machine("small", 2, 2**32)]
VALID: list[dict[str, Any]] = [
    {
        "name": "whole",
        "image": "auto",
        "matrix": {"model": ["resnet34", "resnet50"], "data": ["baseline_aug", "transformer_384"], "seed": [1, 2]},
        "exclude": [{"model": "resnet34", "data": "baseline_aug"}],
        "include": [{"model": "resnet34", "training.batch_size": 32, "priority": 3}],
        "overrides": {"training": "baseline_768", "training.lr": 0.001, "data.img_size": 64},
        "resources": {"gpus": "auto", "gpu_memory": "4g", "memory": "8g", "cpus": 2, "shm": "1g", "share_gpu": True},
        "network": False,
        "max_parallel": 2,
        "timeout": "1h30m",
        "retry": {"attempts": 2, "on": ["lost", "failed"], "backoff": "3s"},
        "on_failure": "stop",
        "env": ["WANDB_PROJECT"],
        "secrets": ["WANDB_API_KEY"],
        "after": [
            {"name": "vote", "step": "ensemble", "from": {"top": 2}, "args": {"method": "soft_voting"}},
            {"name": "guess", "step": "predict", "needs": ["vote"], "args": {"batch_size": 4}},
            {"name": "look", "step": "analyze", "from": {"runs": ["*resnet34*"]}},
        ],
    },
    {"matrix": {"model.name": ["resnet18"], "data.train_transforms": [[{"HorizontalFlip": {"p": 0.5}}]]}},
    {"overrides": {"model": "resnet50"}},
    {"after": [{"name": "a", "step": "ensemble", "from": {"top": 2, "submission": "other"}}]},
]
WORDS = [
    "matrix", "model", "data", "resnet34", "auto", "null", "true", "~", "${seed}", "${data.img_size}", "???", "1e400",
    "-0", "0x1f", "1_000", ".inf", ".nan", "2026-11-24", "12:30:45", "<<", "*", "&a", "!!python/object:os.system",
    "data.img_size", "training.lr", "choices", "seed", "from", "step", "priority", "=", "a=b", "[1,2", "{", "'", '"',
    "\\", "a,b", "model=resnet34", "data.train_transforms.0", "training.micro_batch", "--help", "@runs/x", "../..", "",
]  # fmt: skip
texts = st.one_of(st.sampled_from(WORDS), st.text(max_size=12))
numbers = st.one_of(
    st.integers(-5, 40),
    st.integers(),
    st.sampled_from([10**30, -(10**400), 2**63, 10**9]),
    st.floats(),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts, st.binary(max_size=4), st.dates())
junk = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.one_of(texts, scalars), inner, max_size=3)),
    max_leaves=8,
)
RAW = [
    "matrix", "model", "seed", "overrides", "after", "name", ":", ": ", "- ", "\n", "\n  ", "\n    ", "[", "]", "{", "}",
    ", ", "&a ", "*a", "<<: *a", "!!int ", "!x ", "!!binary ", "'", '"', "|", ">-", "#", "\t", "\x00", "\ufeff", "---\n",
    "...\n", "%YAML 1.1\n", "? ", "resnet34", "1", "1e999", "!!timestamp ", "!!float ", "!!set ", "!!omap ", "=", "é", "😀",
]  # fmt: skip


def paths(content: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of every value in nested dicts and lists."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [at, *(path for key, value in inner for path in paths(value, (*at, key)))]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid job with one to three values replaced, removed, doubled, renamed or added."""
    content = copy.deepcopy(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(1, 3))):
        *parents, last = draw(st.sampled_from(paths(content)[1:] or [("name",)]))
        holder: Any = content
        for part in parents:
            holder = holder[part]
        how = draw(st.sampled_from(["replace", "replace", "remove", "rename", "add", "wrap"]))
        if how == "remove":
            holder.pop(last, None) if isinstance(holder, dict) else holder.pop(last)
        elif how == "rename" and isinstance(holder, dict):
            holder[draw(texts)] = holder.pop(last, None)
        elif how == "add" and isinstance(holder, dict):
            holder[draw(texts)] = draw(junk)
        elif how == "wrap":
            holder[last] = draw(st.sampled_from([[holder.get(last)], {"a": 1}])) if isinstance(holder, dict) else []
        else:
            holder[last] = draw(junk)
    style = draw(st.sampled_from([None, True, False]))
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=style).encode()


@st.composite
def cut(draw: st.DrawFn) -> bytes:
    """A job's text with a piece put in, or the end cut off."""
    text = yaml.safe_dump(draw(st.sampled_from(VALID)), sort_keys=False)
    at = draw(st.integers(0, len(text)))
    return (text[:at] + draw(st.sampled_from([*RAW, *WORDS])) + (text[at:] if draw(st.booleans()) else "")).encode()


files = st.one_of(
    mutated(),
    mutated(),
    cut(),
    st.lists(st.sampled_from(RAW), max_size=14).map(lambda parts: "".join(parts).encode()),
    st.text(max_size=60).map(str.encode),
    st.binary(max_size=40),
)
command_words = st.lists(
    st.one_of(
        st.sampled_from(["seed=1,2", "model=resnet50", "data.img_size=96", "training.lr=x", "seed", "model=a,b"]),
        st.builds("{}={}".format, st.sampled_from(["model", "seed", "training.lr", "data.train_transforms"]), texts),
    ),
    max_size=2,
)
set_words = st.lists(
    st.builds("{}={}".format, st.sampled_from(["name", "resources.cpus", "matrix.model", "after.0.args", "x"]), texts),
    max_size=1,
)


def examine(content: bytes, words: list[str], settings_: list[str], machine: Machine) -> None:
    """Plan the job; whatever is wrong with it must be said in the way of a fault."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.yaml"
        path.write_bytes(content)
        try:
            job = spec.load(path, words, settings_, sections=registry.sections())
            planned = expansion.expand(job, machine)
            remarks.plan_as_json(job, planned, machine, together.at_once(planned, machine, None))
        except (JobError, MachineError) as error:
            said = str(error)
            if isinstance(error, JobError) and error.sound is not None:
                expansion.expand_valid(error.sound, machine, Errors(), cpu_only=True)
            first = said.split("\n")[0]
            named = re.search(r"job\.yaml:\d+(?: and the command line)?: ", first) or first.startswith(
                ("the command line: ", "--set ")
            )
            assert named, f"says not where: {said}"


@given(files, command_words, set_words, st.sampled_from(MACHINES))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_job_file_is_a_plan_or_a_fault_with_its_place(
    content: bytes, words: list[str], set_: list[str], machine: Machine
) -> None:
    examine(content, words, set_, machine)


@pytest.mark.slow
@given(files, command_words, set_words, st.sampled_from(MACHINES))
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
def test_ten_thousand_job_files(content: bytes, words: list[str], set_: list[str], machine: Machine) -> None:
    examine(content, words, set_, machine)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("any")])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_submission_that_cannot_be_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, error: BaseException
) -> None:
    job = spec.from_overrides(["seed=1,2,3,4"])
    machine = MACHINES[-1]
    planned = expansion.expand(job, machine)
    made = []

    def failing(run_dir: Path, request: RunRequest) -> Any:
        if len(made) == after:
            raise error
        made.append(run_dir)
        return create_run(run_dir, request)

    monkeypatch.setattr(submission, "create_run", failing)
    chosen = Choice(registry.engine("native"), machine, "")
    expected = RunError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        submission.create(job, [each.request for each in planned], {}, tmp_path, None, chosen)
    assert len(made) == after and [path.name for path in tmp_path.iterdir()] == [".state"], "the lock's folder alone"
