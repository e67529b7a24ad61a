"""The job file: every error at once, with its line and the nearest right name; never a traceback."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher.base.errors import EngineError, Errors, JobError, RunError, SizeError
from launcher.base.sizes import parse_duration, parse_size
from launcher.engines import choice, registry
from launcher.engines.base import Choice, Want
from launcher.engines.docker import engine as docker_engine
from launcher.engines.docker import images
from launcher.engines.docker.connection import Connection
from launcher.engines.native import engine as native_engine
from launcher.host import machine
from launcher.job import document, expansion, remarks, schema, spec
from launcher.record.request import Resources, RunRequest
from launcher.supervise import together

HERE = machine.Machine("here", 8, 32 * 2**30)
REPOSITORY = Path(__file__).parents[3]


def expand(text: str, *overrides: str, sets: tuple[str, ...] = ()) -> list[expansion.Planned]:
    parsed = document.parse(text, "job.yaml")
    for setting in sets:
        parsed = document.assign(parsed, setting)
    sections = registry.sections()
    return expansion.expand(spec.Job(spec._validate(parsed, sections), parsed, overrides, sections=sections), HERE)


def faults(text: str, *overrides: str, sets: tuple[str, ...] = ()) -> list[str]:
    with pytest.raises(JobError) as raised:
        expand(text, *overrides, sets=sets)
    return str(raised.value).splitlines()


def test_the_canonical_job_file_expands() -> None:
    """As the design shows it: include extends the combination that it fits."""
    planned = expand(
        """
name: benchmark
image: auto
matrix:
  model: [resnet34, resnet50, efficientnet_b4, convnext_base, swin_base_384, deit_base_384]
  data: [baseline_aug, transformer_384]
exclude: []
include:
  - {model: convnext_base, data: baseline_aug, training.batch_size: 64}
overrides: {training: baseline_768, training.batch_size: 32}
resources: {gpus: auto, gpu_memory: auto, memory: 24g, cpus: 8, shm: 8g}
max_parallel: null
timeout: 8h
env: [WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE]
secrets: [WANDB_API_KEY]
after:
  - {name: vote, step: ensemble, from: {top: 3}, args: {method: soft_voting}}
  - {name: submission, step: predict, needs: [vote]}
"""
    )
    trained = [p.request for p in planned if p.request.kind == "train"]
    assert len(trained) == 12 and len({r.name for r in trained}) == 12
    batches = {r.name: r.config["batch_size"] for r in trained}
    assert batches.pop("007-convnext_base-baseline_aug-batch_size64") == 64 and set(batches.values()) == {32}
    first = trained[0]
    assert (first.timeout, first.resources.memory, first.resources.shm) == (8 * 3600, 24 * 2**30, 8 * 2**30)
    assert first.secrets == ["WANDB_API_KEY"]
    vote, predict = (p.request for p in planned[12:])
    assert vote.select == {"top": 3} and vote.needs == [r.name for r in trained]
    assert predict.needs == [vote.name] and predict.command[-1].endswith("/ensemble.json")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nmae: x\n", "job.yaml:1: nmae: unknown field; did you mean 'name'?"),
        ("name: x\nresources:\n  gpu: 1\n", "job.yaml:3: resources.gpu: unknown field; did you mean 'gpus'?"),
        ("resources: {memory: lots}\n", "job.yaml:1: resources.memory: 'lots' is not a size; write it like 24g"),
        ("resources:\n  memory: 5m\n", "job.yaml:2: resources.memory: '5m' is too little: a container needs at least 6m"),
        ("resources: {gpus: lots}\n", "job.yaml:1: resources.gpus: must be a whole number, or auto, not 'lots'"),
        ("resources: {cpus: 0}\n", "job.yaml:1: resources.cpus: must be more than 0, or auto, not 0"),
        ("network: maybe\n", "job.yaml:1: network: must be true or false, or auto, not 'maybe'"),
        ("name: x\ntimeout: soon\n", "job.yaml:2: timeout: 'soon' is not a duration; write it like 8h"),
        ("resources: {gpus: -1}\n", "job.yaml:1: resources.gpus:"),
        ("matrix: {model: resnet34}\n", "job.yaml:1: matrix.model: must be a list"),
        ("matrix: {model: []}\n", "job.yaml:1: matrix.model: must be a list"),
        ("max_parallel: 0\n", "job.yaml:1: max_parallel:"),
        ("resources: {share_gpu: 2}\n", "job.yaml:1: resources.share_gpu:"),
        ("name: x\npriority: 3\n", "job.yaml:2: priority: set it in an entry of include, like {model: resnet34, priority: 10}"),
        ("matrix:\n  seed: [1]\n  priority: [3]\n", "job.yaml:3: matrix.priority: set it in an entry of include"),
        ("overrides: {priority: 3}\n", "job.yaml:1: overrides.priority: set it in an entry of include"),
        ("include:\n  - {seed: 1, priority: 101}\n", "job.yaml:2: include.0.priority: must be a whole number from -100 to 100, not 101"),
        ("include:\n  - {seed: 1, priority: high}\n", "job.yaml:2: include.0.priority: must be a whole number from -100 to 100, not 'high'"),
        ("include:\n  - {seed: 1, priority: true}\n", "job.yaml:2: include.0.priority: must be a whole number from -100 to 100, not True"),
        ("env:\n  - WANDB_API_KEY\n", "job.yaml:2: env.0: WANDB_API_KEY looks like a secret: list it under secrets:"),
        ("secrets: [a=b]\n", "is not a name of an environment variable"),
        ("name: ../x\n", "job.yaml:1: name: '../x': a name has letters from a to z"),
        ("name: x\nname: y\n", "job.yaml:2: 'name' is already in line 1"),
        ("after:\n  - {name: a, step: ensamble, from: {top: 1}}\n", "job.yaml:2: after.0.step: 'ensamble' is not allowed; did you mean 'ensemble'?"),
        ("after: [{name: a, step: predict}]\n", "has no input"),
        ("after: [{name: a, step: ensemble, needs: [b]}]\n", "no step 'b'"),
        ("after: [{name: a, step: predict, needs: [a]}]\n", "no step 'a'"),
        ("after: [{name: a, step: ensemble, from: {top: 1, runs: [x]}}]\n", "write either top: N or runs:"),
        ("after: [{name: a, step: ensemble, from: {top: 1}, args: {methd: x}}]\n", "did you mean 'method'?"),
        ("after: [{name: a, step: ensemble, from: {top: 1}, args: {method: soft_votin}}]\n", "'soft_votin' is not allowed; did you mean 'soft_voting'?"),
        ("after: [{name: a, step: ensemble, from: {runs: ['xyz*']}}]\n", "no run matches 'xyz*'; runs: 001-resnet34"),
        ("matrix:\n  seed: [1, 2]\nexclude:\n  - {sead: 1}\n", "job.yaml:4: exclude.0: 'sead' is not an axis; did you mean 'seed'?"),
        ("matrix:\n  seed: [1, 2]\nexclude:\n  - {seed: 3}\n", "job.yaml:4: exclude.0: matches no combination"),
        ("matrix:\n  seed: [1]\nexclude:\n  - {seed: 1}\n", "exclude leaves no run"),
        ("matrix:\n  model:\n    - resnet34\n    - resnet43\n", "job.yaml:4: model=resnet43: unknown model 'resnet43'; did you mean 'resnet34'?"),
        ("overrides:\n  training.batchsize: 3\n", "job.yaml:2: training.batchsize=3: unknown key 'training.batchsize'; did you mean 'training.batch_size'?"),
        ("matrix: {seed: [1]}\ninclude:\n  - {data.img_size: big}\n", "job.yaml:3: data.img_size=big"),
        ("overrides: {data.img_size: 1}\n", "job.yaml:1: data.img_size=1: must be from 16 to 4096"),
        ("", "job.yaml:1: the file is empty"),
        ("- a\n- b\n", "job.yaml:1: a job is a mapping"),
        ("name: [x\n", "not YAML"),
        ("name:\tx\n\ty: 1", "not YAML"),
        ("a: &x [*x]\n", "job.yaml:1: an anchor that contains itself"),
        ("? [a]\n: b\n", "a key must be a plain word"),
    ],
)  # fmt: skip
def test_a_fault_has_its_line_and_the_way_out(text: str, expected: str) -> None:
    assert any(expected in line for line in faults(text)), faults(text)


@pytest.mark.parametrize("weights", ["equal", "greedy", "optimised", "[2, 0.5]", "1"])
def test_weights_of_an_ensemble_are_a_word_or_numbers(weights: str) -> None:
    text = "after: [{name: a, step: ensemble, from: {top: 2}, args: {weights: WEIGHTS}}]\n"
    assert expand(text.replace("WEIGHTS", weights))[-1].request.kind == "ensemble"
    (fault,) = faults(text.replace("WEIGHTS", "best"))
    assert "'best' is not allowed; valid: equal, greedy, or one number per member" in fault


def test_every_fault_is_reported_at_once_and_each_once() -> None:
    found = faults("nmae: x\ntimeout: soon\nmax_parallel: 0\n")
    assert [line.split(":")[1] for line in found] == ["1", "2", "3"], "as they stand in the file"
    found = faults("matrix:\n  model: [resnet43, resnet50]\n  seed: [1, 2, 3]\noverrides: {trainin.lr: 1}\n")
    assert len(found) == 2 and found[0].startswith("job.yaml:2:") and found[1].startswith("job.yaml:4:")


def all_faults(text: str, tmp_path: Path) -> list[str]:
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(JobError) as raised:
        spec.load(tmp_path / "job.yaml")
    collected = Errors()
    collected.add(raised.value)
    if raised.value.sound is not None:
        expansion.expand_valid(raised.value.sound, machine.Machine("any", 1, 0), collected, cpu_only=True)
    with pytest.raises(JobError) as joined:
        collected.raise_all()
    return str(joined.value).replace(f"{tmp_path}/", "").splitlines()


def test_faults_of_fields_of_steps_and_of_names_come_together(tmp_path: Path) -> None:
    found = all_faults(
        "nmae: x\ntimeout: soon\nmatrix:\n  model: [resnet43]\n  data: [baseline_aug]\noverrides: {trainin.lr: 1}\n"
        "after:\n  - {name: vote, step: ensemble, needs: [train]}\n",
        tmp_path,
    )
    assert [line.split(": ", 2)[:2] for line in found] == [
        ["job.yaml:1", "nmae"],
        ["job.yaml:2", "timeout"],
        ["job.yaml:4", "model=resnet43"],
        ["job.yaml:6", "trainin.lr=1"],
        ["job.yaml:8", "after.0.needs"],
        ["job.yaml:8", "after.0"],
    ]
    steps = "\n".join(f"  - {{name: s{n}, step: ensemble, from: {{runs: ['x{n}']}}}}" for n in (0, 1))
    found = all_faults(f"max_parallel: 0\nafter:\n{steps}\n", tmp_path)
    assert [line.split(": ")[1] for line in found] == ["max_parallel", "after.0.from.runs", "after.1.from.runs"]


@pytest.mark.parametrize(
    "text",
    [
        "matirx: {model: [resnet34]}\nexclude: [{model: resnet34}]\n",
        "axes: {data.folds: [5]}\noverrides: {data.fold: 1}\n",
        "overrides: 3\nmatrix: {data.fold: [0, 1]}\n",
        "matrix: {seed: [1, 2]}\nexclude: [{sead: 1}]\noverrides: {seed: x}\n",
        "after: [{name: a, step: ensamble, from: {top: 1}}, {name: b, step: predict, needs: [a]}]\n",
    ],
)
def test_a_fault_brings_no_other_that_only_follows_from_it(text: str, tmp_path: Path) -> None:
    assert len(all_faults(text, tmp_path)) == 1


@pytest.mark.parametrize("text", ["resources: {gpus: lots}\n", "resources: {cpus: -1}\n", "network: maybe\n"])
def test_a_field_of_several_types_has_one_fault(text: str) -> None:
    assert len(faults(text)) == 1


def test_the_command_line_wins_over_the_matrix_and_that_over_overrides() -> None:
    text = "matrix: {seed: [1, 2]}\noverrides: {seed: 9, training.epochs: 3}\n"
    assert [p.request.config["seed"] for p in expand(text)] == [1, 2]
    assert [p.request.config["epochs"] for p in expand(text, "training.epochs=5")] == [5, 5]
    assert faults(text, "sead=5")[0].startswith("the command line: sead=5: unknown key")


def test_a_word_on_the_command_line_replaces_an_axis() -> None:
    text = (
        "matrix:\n  seed: [1, 2]\n  data: [baseline_aug, transformer_384]\nexclude: [{seed: 2, data: baseline_aug}]\n"
    )
    assert [p.request.config["seed"] for p in expand(text, "seed=1")] == [1, 1]
    assert [p.request.config["seed"] for p in expand(text, "seed=7,8", "data=baseline_aug")] == [7, 8]
    assert len(expand(text, "training.lr=0.1,0.2")) == 6
    assert faults(text, "data=baseline_aug,basline")[0].startswith("the command line: data=basline")


def test_set_changes_the_job_file() -> None:
    text = "name: x\nresources: {cpus: 4}\noverrides: {training.lr: 0.1}\nafter: [{name: v, step: ensemble, from: {top: 3}}]\n"
    (run, vote) = expand(text, sets=("resources.cpus=2", "overrides.training.lr=0.5", "after.0.from.top=1"))
    assert run.request.resources.cpus == 2 and "training.lr=0.5" in run.request.overrides
    assert vote.request.select == {"top": 1}
    for wrong, said in (
        ("resources.cpus", "path=value"),
        ("after.7.name=x", "no item 7"),
        ("after.².name=x", "no item ²"),
        (f"after.{'1' * 5000}.name=x", "no item 111"),
        ("name.x=1", "is not a mapping or list"),
    ):
        assert any(said in line for line in faults(text, sets=(wrong,)))


def test_what_is_set_on_the_command_line_stands_there_in_messages() -> None:
    text = "name: x\nresources:\n  memory: 4g\noverrides: {training.lr: 0.1}\n"
    assert faults(text, sets=("resources.memory=1m",)) == [
        "the command line: resources.memory: '1m' is too little: a container needs at least 6m (6 MiB)"
    ]
    assert faults(text, sets=("resources={memory: 1m}",))[0].startswith("the command line: resources.memory: ")
    assert faults(text, sets=("overrides.training.lr=fast",))[0].startswith("the command line: training.lr=fast")
    assert faults(text + "timeout: soon\n", sets=("resources.memory=9g",))[0].startswith("job.yaml:5: timeout: ")
    (run,) = expand(text, sets=("resources.memory=150m",))
    assert run.request.memory_place == "the command line"
    with pytest.raises(JobError, match=r"^the command line: resources\.memory: "):
        spec.from_overrides(["seed=1"], ["resources.memory=1m"])


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a,b", ["a", "b"]),
        ("[1,2],[3]", ["[1,2]", "[3]"]),
        ("'a,b'", ["'a,b'"]),
        ("{a:1,b:2}", ["{a:1,b:2}"]),
        ("one", ["one"]),
    ],
)
def test_commas_inside_brackets_and_quotes_do_not_separate(text: str, values: list[str]) -> None:
    assert spec.split_values(text) == values


def test_a_thousand_values_are_a_thousand_runs() -> None:
    job = spec.from_overrides(["seed=" + ",".join(map(str, range(1000)))])
    assert len(expansion.expand(job, HERE)) == 1000


def test_words_alone_make_a_matrix() -> None:
    job = spec.from_overrides(["model=resnet34,resnet50", "data=baseline_aug", "training.batch_size=32"])
    planned = expansion.expand(job, HERE)
    assert [p.request.name for p in planned] == ["001-resnet34", "002-resnet50"]
    assert {p.request.config["batch_size"] for p in planned} == {32}
    assert yaml.safe_load(job.source)["matrix"] == {"model": ["resnet34", "resnet50"]}
    with pytest.raises(JobError, match=r"not a job file and not key=value"):
        spec.from_overrides(["resnet34"])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "is a folder"),
        (
            lambda path: path.write_bytes(b"\xff\xfen\x00"),
            "save it as UTF-8, or run: iconv -f utf16 -t utf8 '.*/my job.yaml' >",
        ),
        (
            lambda path: path.write_bytes("# 한".encode("cp949")),
            "or run: iconv -f cp949 -t utf8 '.*/my job.yaml' > NEW",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_error(tmp_path: Path, make, said: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "my job.yaml"
    make(path)
    with pytest.raises(JobError, match=said):
        spec.load(path)


def test_a_misspelt_job_file_names_the_nearest() -> None:
    with pytest.raises(JobError, match=r"did you mean '.*jobs/benchmark\.yaml'"):
        spec.load(REPOSITORY / "jobs" / "benchmrk.yaml")


def test_a_job_is_found_by_its_bare_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(REPOSITORY)
    for word in ("quickstart", "quickstrat.yaml", "nowhere/quickstart.yaml"):
        with pytest.raises(JobError, match=r"did you mean 'jobs/quickstart\.yaml'\?"):
            spec.load(Path(word))
    monkeypatch.chdir(tmp_path)
    for word in ("quickstart", "jobs/quickstart.yaml"):
        with pytest.raises(JobError, match=r"no folder jobs/ here: cd to the project's checkout"):
            spec.load(Path(word))


def chosen(engine: str, image: str) -> Choice:
    """The engine for a job with this `image:`."""
    parsed = document.parse(f"name: x\nimage: {image}\n", "job.yaml")
    return choice.choose(engine, Want(spec.Job(spec._validate(parsed), parsed)))


@pytest.fixture
def docker(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A Docker engine that has no image, and this host as HERE."""
    monkeypatch.setattr(Connection, "client", SimpleNamespace())
    monkeypatch.setattr(Connection, "info", {})
    monkeypatch.setattr(Want, "host", lambda want: HERE)
    monkeypatch.setattr(images, "find", lambda client, name: None)
    return monkeypatch


@pytest.mark.parametrize("word", ["cpu", "cuda", "auto"])
def test_an_image_of_the_projects_own_has_a_short_name(word: str, docker: pytest.MonkeyPatch) -> None:
    asked = []

    def resolve(client: object, wanted: str, gpus: bool) -> object:
        asked.append(wanted)
        raise EngineError("not there")

    docker.setattr(images, "resolve", resolve)
    with pytest.raises(EngineError if word == "auto" else JobError, match="not there"):
        chosen("docker", word)
    assert asked == [word if word == "auto" else f"document-classifier:{word}"]


def image(stale: bool | None) -> images.Image:
    return images.Image("sha256:1", ("mine:1",), "cpu", "", 1, "0.1", "", "", stale)


def test_auto_takes_what_is_there_and_refuses_a_named_image_that_is_not(docker: pytest.MonkeyPatch) -> None:
    def missing(names: list[str]) -> None:
        docker.setattr(docker_engine, "missing_packages", lambda: names)
        docker.setattr(native_engine.checks, "missing_packages", lambda: names)

    def lacks(client: object, wanted: str, gpus: bool) -> images.Image:
        raise EngineError(f"the Docker engine has no image {wanted}")

    missing([])
    docker.setattr(images, "resolve", lacks)
    with pytest.raises(JobError, match=r"^job\.yaml:2: image: the Docker engine has no image mine:1$"):
        chosen("auto", "mine:1")
    assert "native processes (auto: the Docker engine has no image" in chosen("auto", "auto").said

    docker.setattr(images, "resolve", lambda client, wanted, gpus: image(stale=True))
    assert "older than this checkout" in chosen("auto", "auto").said
    missing(["torch"])
    found = chosen("auto", "auto")
    assert found.said.endswith("(auto: native runs need packages that are not installed here)") and found.warnings
    docker.setattr(images, "resolve", lambda client, wanted, gpus: image(stale=False))
    assert chosen("auto", "auto").said.endswith("(auto: an engine and its image exist)")

    def silent(connection: Connection) -> None:
        raise EngineError("no Docker engine answers")

    docker.setattr(Connection, "client", property(silent))
    with pytest.raises(
        RunError, match=r"that are not installed: torch\ninstall them: .*; or use containers \(auto: no Docker engine"
    ):
        chosen("auto", "mine:1")
    missing([])
    assert "(auto: no Docker engine answers)" in chosen("auto", "mine:1").said


def test_an_engine_that_is_not_there_is_refused() -> None:
    with pytest.raises(RunError, match=r"no engine 'natve'; did you mean 'native'\?"):
        registry.engine("natve")
    with pytest.raises(RunError, match="the engine slurm has its own queue"):
        registry.supervised("slurm")


def test_what_a_machine_without_a_gpu_means_is_said_once() -> None:
    parsed = document.parse("matrix: {seed: [1, 2]}\n", "job.yaml")
    job = spec.Job(spec._validate(parsed), parsed)
    slow = "note: training on 8 CPU cores takes many times longer than on a GPU"
    assert remarks.before_start(job, expansion.expand(job, HERE), HERE).count(slow) == 1
    gpu = machine.Machine("server", 8, 64 * 2**30, (machine.Gpu(0),))
    assert not any("longer" in line for line in remarks.before_start(job, expansion.expand(job, gpu), gpu))
    mac = machine.Machine("mac", 8, 64 * 2**30, mps=True)
    assert not any("longer" in line for line in remarks.before_start(job, expansion.expand(job, mac), mac))


def test_a_time_limit_is_said_in_its_unit() -> None:
    for text, said in (("timeout: 20", "20 s"), ("timeout: 8h", "8 h 0 min")):
        parsed = document.parse(f"{text}\nmatrix: {{seed: [1]}}\n", "job.yaml")
        job = spec.Job(spec._validate(parsed), parsed)
        notes = remarks.before_start(job, expansion.expand(job, HERE), HERE)
        assert [line for line in notes if line.startswith("timeout: each run is stopped after ")] == [
            f"timeout: each run is stopped after {said}"
        ]


def test_variables_that_are_not_set_are_named() -> None:
    text = "env: [CITY, EMPTY]\nsecrets:\n  - MY_TOKEN\n  - WANDB_API_KEY\n"
    parsed = document.parse(text, "job.yaml")
    job = spec.Job(spec._validate(parsed), parsed)
    assert remarks.unset_variables(job, {"EMPTY": "", "WANDB_API_KEY": ""}) == [
        "note: job.yaml:1: env: CITY is not set; export it if the runs need it",
        "note: job.yaml:3: secrets: MY_TOKEN is not set; export it if the runs need it",
        "note: job.yaml:4: secrets: WANDB_API_KEY is not set: runs do not log to W&B",
    ]
    assert remarks.unset_variables(job, {"CITY": "x", "EMPTY": "", "MY_TOKEN": "x", "WANDB_API_KEY": "x"}) == []
    shipped = spec.load(REPOSITORY / "jobs" / "benchmark.yaml")
    (line,) = remarks.unset_variables(shipped, {})
    assert line.endswith("secrets: WANDB_API_KEY is not set: runs do not log to W&B"), "once, not for each variable"


GOOD = """
name: x
matrix: {seed: [1, 2], data: [baseline_aug]}
overrides: {model: resnet34}
resources: {gpus: auto, memory: 4g}
after:
  - {name: v, step: ensemble, from: {top: 2}}
"""
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from([*schema.JobSpec.model_fields, *registry.sections(), "nonsense"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda b: b.decode("latin1")))
def test_any_text_is_a_job_or_a_clear_error(text: str) -> None:
    try:
        expand(text)
    except JobError as error:
        assert str(error).strip()


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(fields, anything)
def test_a_job_with_anything_in_a_field_is_a_job_or_a_clear_error(field: str, value: object) -> None:
    job = {**yaml.safe_load(GOOD), field: value}
    try:
        expand(yaml.safe_dump(job))
    except JobError as error:
        assert str(error).strip()


def test_a_priority_is_the_schedulers_and_changes_nothing_of_the_run() -> None:
    text = "matrix: {{model: [resnet34, resnet50], seed: [1, 2]}}\n{}"
    plain = [p.request for p in expand(text.format(""))]
    include = "include: [{model: resnet50, priority: 7}, {model: resnet50, seed: 2, priority: -7}]\n"
    found = [p.request for p in expand(text.format(include))]
    assert [request.priority for request in found] == [0, 0, 7, -7]
    assert [(r.name, r.command, r.identity) for r in found] == [(r.name, r.command, r.identity) for r in plain]


def test_runs_that_share_a_gpu_leave_cores_for_each_other() -> None:
    gpu = machine.Machine("server", 32, 64 * 2**30, (machine.Gpu(0, memory=24 * 2**30),))
    for text, cpus, parallel in (
        ("matrix: {seed: [1, 2, 3, 4]}\n", 32, 1),
        ("matrix: {seed: [1, 2, 3, 4]}\nresources: {share_gpu: true, gpu_memory: 8g}\n", 4, 3),
        ("matrix: {seed: [1, 2, 3, 4]}\nresources: {share_gpu: true}\n", 4, 4),  # as predicted: 4.4 GiB each
        (
            "image: mine\nmatrix: {seed: [1, 2, 3, 4]}\noverrides: {model.name: nobody_knows_it}\nresources: {share_gpu: true}\n",
            4,
            1,
        ),
    ):
        parsed = document.parse(text, "job.yaml")
        job = spec.Job(spec._validate(parsed), parsed)
        planned = expansion.expand(job, gpu)
        assert planned[0].request.resources.cpus == cpus
        assert together.at_once(planned, gpu, None) == parallel
        assert any("share_gpu" in line for line in remarks.before_start(job, planned, gpu)) == ("nobody" in text)


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("overrides:\n  training: baseline_768\n", ("training.batch_size=0",), "the command line: training.batch_size=0"),
        ("overrides:\n  model: resnet34\n  model.pretrained: false\n", ("model=resnet35",), "the command line: model=resnet35"),
        ("matrix:\n  model: [resnet34]\n", ("model=resnet35",), "the command line: model=resnet35"),
        ("overrides:\n  training.micro_batch: 8\n", ("training.batch_size=12",), "the command line: training.micro_batch=8"),
        ("overrides:\n  training.batch_size: 12\n", ("training.micro_batch=8",), "the command line: training.micro_batch=8"),
        ("overrides:\n  seed: 1\n  training.batch_size: 12\n  training.micro_batch: 8\n", (), "job.yaml:4: training.micro_batch=8"),
        ("overrides:\n  training.lr: 1e-6\n", ("training.min_lr=1e-5",), "the command line: training.min_lr"),
        ("overrides:\n  data: baseline_aug\n  training.lr: 1e-9\n", (), "job.yaml:3: training.min_lr"),
        ("overrides:\n  data.folds: 5\nmatrix:\n  data.fold: [1]\n", ("data.folds=2", "data.fold=2"), "the command line: data.fold=2"),
        ("overrides:\n  data: baseline_aug\n", ("data.img_size=1",), "the command line: data.img_size=1"),
        ("matrix:\n  seed: [1]\ninclude:\n  - {training: finetune}\n", ("training.lr=1000",), "the command line: training.lr=1000"),
        ("matrix: {model: [resnet50]}\ninclude:\n  - {model: []}\n", ("model=resnet34",), "job.yaml:3: model=[]"),
        ("overrides: {data.img_size: 64}\n", ("resources.cpus=2",), "the command line: resources.cpus=2"),
    ],
)  # fmt: skip
def test_who_gave_the_wrong_value_is_to_blame(text: str, words: tuple[str, ...], expected: str) -> None:
    found = faults(text, *words)
    assert len(found) == 1 and found[0].startswith(expected), found


@pytest.mark.parametrize("engine", ["native", "docker"])
def test_variables_that_the_launcher_sets_cannot_be_passed_on(engine: str, tmp_path: Path) -> None:
    from launcher.engines import process
    from launcher.engines.docker import recipe

    request = RunRequest("001-a", 1, "train", ["train"], resources=Resources(1, 2**30, cpus=2), data_dir="/data")
    run_dir = tmp_path / "sub" / "001-a"
    if engine == "native":
        before = dict.fromkeys(os.environ)
        made = process.environment(run_dir, request, [], Path("/secrets"))
        made = {name: value for name, value in made.items() if before.get(name, "") != value and name not in before}
    else:
        made = recipe.environment(request, recipe.Place("x", (), (1, 1), secrets=Path("/s")), run_dir, gpus=False)
    for name in {*made, "LAUNCHER_DEVICES", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"}:
        for field in ("env", "secrets"):
            found = faults(f"name: x\n{field}: [A]\n".replace("A", name))
            assert any(line.startswith("job.yaml:2: ") and "sets this variable" in line for line in found), (
                name,
                found,
            )


@pytest.mark.parametrize(
    "image",
    ["Bad Name", "UPPER:1", "a b", "'x:'", "x:tag with space", "-x", "x//y", "a@sha256:1", "x" * 501, '"\\e[2J"'],
)
def test_the_name_of_an_image_is_checked(image: str) -> None:
    assert faults(f"name: x\nimage: {image}\n")[0].startswith("job.yaml:2: image: ")


@pytest.mark.parametrize(
    "image",
    ["auto", "cuda", "mine:1", "true:test", "localhost/a/b:x_1", "server.lan:5000/team/name:V1.0-rc", "a__b/c-d.e@sha256:" + "0" * 64, "sha256:" + "a" * 64, "ghcr.io/Org/x".lower()],
)  # fmt: skip
def test_names_of_images_that_docker_knows_are_accepted(image: str) -> None:
    assert schema.JobSpec.model_validate({"image": image}).image == image


@pytest.mark.parametrize(
    "text", ["1.5.2h", "1h1h", "30m1h", "h", "", "1h30", "1 h m", "0s", "0", "-1h", "1e3h", "1,5h", "nan", "inf"]
)
def test_a_duration_is_exact(text: str) -> None:
    with pytest.raises(SizeError):
        parse_duration(text)


@pytest.mark.parametrize("text", ["1.5.2g", "g", "0", "0.1", "1g1m", "-1g", "1,5g", "nan", ".5g", "1 0g", "1gg"])
def test_a_size_is_exact(text: str) -> None:
    with pytest.raises(SizeError):
        parse_size(text)


@pytest.mark.parametrize("number", ["24", 24, 512.0, "1048575"])
def test_a_small_number_without_a_unit_is_no_size(number: object) -> None:
    """24 bytes of memory are never meant."""
    with pytest.raises(SizeError, match=r"would be bytes; write its unit, like (24|512\.0|1048575)g or"):
        parse_size(number)


@pytest.mark.parametrize(
    "args",
    [
        "batch_size: huge",
        "batch_size: 0",
        "num_workers: -1",
        "batch_size: 1.5",
        "batch_size: true",
        "device: gpu",
        "precision: half",
        "batch_size: .nan",
    ],
)
def test_the_numbers_of_a_step_are_checked_before_hours_of_training(args: str) -> None:
    (line,) = faults(f"after:\n  - {{name: a, step: predict, from: {{top: 1}}, args: {{{args}}}}}\n")
    assert line.startswith(f"job.yaml:2: after.0.args.{args.partition(':')[0]}: ")


@pytest.mark.parametrize("command", ["plan", "submit"])
def test_traces_of_memory_are_kept_where_runs_says(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from launcher.cli.main import cli
    from launcher.memory import predict

    folders: list[Path] = []

    def trace(*words: Any, **more: Any) -> tuple[None, str]:
        folders.append(words[5])
        raise JobError("far enough")

    monkeypatch.setattr(predict, "trace", trace)
    words = [command, "model.name=resnet10t", "--machine", "cuda-server", "--runs", str(tmp_path / "mine")]
    done = CliRunner().invoke(cli, words + (["--engine", "native"] if command == "submit" else []))
    assert str(done.exception).splitlines()[0] == "far enough"
    assert [folder.is_relative_to(tmp_path / "mine") for folder in folders] == [True]
