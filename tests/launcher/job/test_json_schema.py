"""What the launcher accepts is valid for an editor, and what the launcher refuses for its form is not."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher.base import yaml_text
from launcher.base.errors import JobError, MachineError
from launcher.cli.main import cli
from launcher.engines import registry
from launcher.host.machine import Machine
from launcher.job import expansion, json_schema, matrix, spec
from launcher.job.spec import Job
from tests.launcher.job.test_fuzz import VALID, cut, mutated

ROOT = Path(__file__).parents[3]
HERE = Machine("here", 8, 32 * 2**30)
Faults = Callable[[Any], list[str]]


@pytest.fixture(scope="module")
def faults() -> Faults:
    """What the schema says of a job file's content."""
    import jsonschema  # not at the top: without it the other tests of the folder are collected

    made = json_schema.job_schema(registry.sections())
    jsonschema.Draft202012Validator.check_schema(made)
    validator = jsonschema.Draft202012Validator(made)
    return lambda content: [f"{error.json_path}: {error.message[:300]}" for error in validator.iter_errors(content)]


def accepted(content: bytes) -> Job | None:
    """The job if the launcher plans it and at least one run has each of its values; else None."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.yaml"
        path.write_bytes(content)
        try:
            job = spec.load(path, sections=registry.sections())
            planned = expansion.expand(job, HERE, cpu_only=True)
        except (JobError, MachineError):
            return None
    words = {word for each in planned for word in each.request.overrides}
    entries = [*job.spec.include, job.spec.overrides, *({k: v} for k, axis in job.spec.matrix.items() for v in axis)]
    given = {f"{k}={matrix.override_value(v)}" for entry in entries for k, v in entry.items() if k != spec.PRIORITY}
    return job if given <= words else None  # nobody looks at a value that no run has


def test_the_file_beside_the_jobs_is_what_the_command_prints() -> None:
    printed = CliRunner().invoke(cli, ["schema"])
    assert printed.exit_code == 0
    assert (ROOT / "jobs" / "schema.json").read_text(encoding="utf-8") == printed.output, "run make docs"


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda path: path.name)
def test_jobs_are_valid_and_name_the_schema(path: Path, faults: Faults) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")
    assert faults(yaml_text.read(text)[0]) == []


def test_jobs_in_the_docs_are_valid(faults: Faults) -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    blocks = [
        block
        for page in pages
        for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)
    ]
    jobs = [content for block in blocks if isinstance(content := yaml_text.read(block)[0], dict)]
    assert len(jobs) >= 2
    for content in jobs:
        assert faults(content) == []


@pytest.mark.parametrize("content", VALID)
def test_jobs_that_the_fuzzing_begins_with_are_valid(content: dict[str, Any], faults: Faults) -> None:
    assert faults(content) == []


def compare(content: bytes, faults: Faults) -> None:
    if accepted(content) is not None:
        assert faults(yaml_text.read(content.decode("utf-8-sig"))[0]) == []


files = st.one_of(mutated(), cut())


@given(files)
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_the_launcher_accepts_is_valid(faults: Faults, content: bytes) -> None:
    compare(content, faults)


@pytest.mark.slow
@given(files)
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
def test_ten_thousand_job_files_that_the_launcher_accepts(faults: Faults, content: bytes) -> None:
    compare(content, faults)


@pytest.mark.parametrize(
    "text",
    [
        "name: 7",
        "image: server:5000/team/name:tag",
        "image: sha256:0123456789ab",
        "timeout: 90",
        "timeout: 1h30m",
        "timeout: ' 1.5 H '",
        "timeout: 1d 2h",
        "timeout: null",
        "retry: {backoff: 0}",
        "retry: {backoff: 0s}",
        "retry: {backoff: 1m}",
        "resources: {memory: 1.5GiB, shm: 512 MB, gpu_memory: 4t}",
        "resources: {memory: 2147483648}",
        "resources: {memory: '2147483648b'}",
        "resources: {cpus: 0.5}",
        "resources: {cpus: '2'}",
        "resources: {gpus: auto, cpus: auto, memory: auto}",
        "network: true",
        "env: [WANDB_PROJECT]",
        "secrets: [WANDB_API_KEY]",
        "overrides: {training.lr: 1e-4, seed: '7', training.compile: null, data.folds: 'null', training.drop_last: 'yes'}",
        "overrides: {training.batch_size: '${training.epochs}', device: auto}",
        "overrides: {data.train_transforms: [HorizontalFlip, {Rotate: {limit: 5, p: 0.3}}], data.train_transforms.0: null}",
        "overrides: {model.name: resnet18, data.root: 7}",
        "matrix: {data.fold: all}\noverrides: {data.folds: 3}",
        "matrix: {seed: ['1', 2]}\nexclude: [{seed: 1}]",
        "include: [{model: resnet50, priority: -100}]",
        "after: [{name: a, step: predict, from: {runs: ['*'], top: null}, args: {tta: light}}]",
        "after: [{name: a, step: ensemble, from: {top: 3}, args: {weights: [1, 0.5, 0]}}]",
        "slurm: {partition: gpu, constraint: a100, nice: 100, exclusive: true, mail_type: null}",
    ],
)
def test_what_is_right_is_valid(text: str, faults: Faults) -> None:
    if "data.train_transforms.0" not in text:  # the first step cannot be null, which only the trainer knows
        spec.load(Path("job.yaml"), source=text.encode(), sections=registry.sections())
    assert faults(yaml_text.read(text)[0]) == []


@pytest.mark.parametrize(
    "text",
    [
        "nam: x",
        "name: a b",
        "name: ''",
        "name: true",
        "name: -1",
        f"name: {'x' * 65}",
        "image: Server/Name",
        "image: 7",
        "matrix: [resnet34]",
        "matrix:",
        "matrix: {model: resnet34}",
        "matrix: {model: []}",
        "matrix: {model: [resnet35]}",
        "matrix: {training.lrr: [0.1]}",
        "matrix: {data.fold: every}",
        "matrix: {priority: [1]}",
        "exclude: {model: resnet34}",
        "include: [{model: resnet34, priority: 101}]",
        "include: [{model: resnet34, priority: high}]",
        "include: [resnet34]",
        "overrides: {seed: -1}",
        "overrides: {seed: 1.5}",
        "overrides: {seed: one}",
        "overrides: {seed: true}",
        "overrides: {seed: null}",
        "overrides: {training.lr: 0}",
        "overrides: {training.lr: high}",
        "overrides: {training.lr: [0.1]}",
        "overrides: {training.compile: maybe}",
        "overrides: {training.optimizer: adam}",
        "overrides: {training.teachers: best.ckpt}",
        "overrides: {model.name: [resnet18]}",
        "overrides: {data: {img_size: 64}}",
        "overrides: {data.train_transforms: HorizontalFlip}",
        "overrides: {data.train_transforms: [HorizontalFlop]}",
        "overrides: {data.train_transforms: [{Rotate: {limits: 5}}]}",
        "overrides: {data.train_transforms: [{Rotate: {p: 2}}]}",
        "overrides: {data.train_transforms: [{Rotate: {}, HorizontalFlip: {}}]}",
        "overrides: {choices: {}}",
        "resources: {gpus: -1}",
        "resources: {gpus: one}",
        "resources: {gpus: '1'}",
        "resources: {gpu: 1}",
        "resources: {memory: 24}",
        "resources: {memory: 24q}",
        "resources: {memory: 1m, cpus: true}",
        "resources: {shm: 0g}",
        "resources: {cpus: 0}",
        "resources: {cpus: true}",
        "resources: {share_gpu: 1}",
        "network: 'yes'",
        "network: 1",
        "max_parallel: 0",
        "timeout: 8x",
        "timeout: 0",
        "timeout: 0h",
        "timeout: ''",
        "timeout: 30m1h",
        "timeout: true",
        "retry: {attempts: 0}",
        "retry: {on: [succeeded]}",
        "retry: {backoff: soon}",
        "on_failure: wait",
        "follows: 7",
        "env: [WANDB-PROJECT]",
        "env: [my_token]",
        "env: [DATA_DIR]",
        "env: [LAUNCHER_X]",
        "secrets: [A=b]",
        "after: [{name: a}]",
        "after: [{step: predict, from: {top: 1}}]",
        "after: [{name: a, step: guess, from: {top: 1}}]",
        "after: [{name: a, step: predict}]",
        "after: [{name: a, step: ensemble, needs: [b]}]",
        "after: [{name: a, step: predict, from: {}}]",
        "after: [{name: a, step: predict, from: {top: 1, runs: ['*']}}]",
        "after: [{name: a, step: predict, from: {runs: []}}]",
        "after: [{name: a, step: predict, from_: {top: 1}}]",
        "after: [{name: a, step: predict, from: {top: 1}, args: {method: soft_voting}}]",
        "after: [{name: a, step: analyze, from: {top: 1}, args: {tta: light}}]",
        "after: [{name: a, step: ensemble, from: {top: 1}, args: {method: softest}}]",
        "after: [{name: a, step: ensemble, from: {top: 1}, args: {batch_size: 0}}]",
        "after: [{name: a, step: ensemble, from: {top: 1}, args: {weights: -1}}]",
        "slurm: {time: 8}",
        "slurm: {job_name: x}",
        "slurm: {runtime: podman}",
        "slurm: {Constraint: a100}",
        "slurm: {constraint: [a100]}",
        "native: {}",
        "- model",
    ],
)
def test_what_the_launcher_refuses_for_its_form_is_not_valid(text: str, faults: Faults) -> None:
    assert accepted(text.encode()) is None, "the launcher takes it"
    with pytest.raises(JobError):
        expansion.expand(spec.load(Path("job.yaml"), source=text.encode(), sections=registry.sections()), HERE)
    assert faults(yaml_text.read(text)[0]) != []


def test_every_field_and_key_is_described() -> None:
    made = json_schema.job_schema(registry.sections())
    bare = [name for name, field in made["properties"].items() if not field.get("description")]
    bare += [
        name
        for name in made["$defs"]["included"]["properties"]
        if name in made["$defs"] and not made["$defs"][name].get("description")
    ]
    assert bare == []
    assert set(registry.sections()) <= set(made["properties"]), "each engine's own section"


def test_the_text_is_json_again() -> None:
    made = json_schema.job_schema(registry.sections())
    assert json.loads(json_schema.as_text(made)) == made
