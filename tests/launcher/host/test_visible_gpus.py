"""Which GPUs a run gets, by which names, and what is said of CUDA_VISIBLE_DEVICES. The driver is a stub."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.base.errors import MachineError
from launcher.engines.docker import recipe
from launcher.host import gpu_locks, machine, nvml
from tests.launcher.conftest import FAKE, REPOSITORY, Lab, seeds, unwrapped, wait_for
from tests.launcher.host import stub_nvml

P400 = {"name": "Quadro P400", "uuid": "GPU-8932f937-1111", "gib": 2}
A100 = {"name": "A100", "uuid": "GPU-8932f937-2222", "gib": 80}
L4 = {"name": "L4", "uuid": "GPU-aaaa0000-3333", "gib": 24}
INSTANCES = [{"name": "A100 MIG 3g.40gb", "uuid": f"MIG-{word}", "gib": 40} for word in ("one-1", "two-2")]
DIVIDED = {**A100, "instances": INSTANCES}


@pytest.fixture(autouse=True)
def driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", stub_nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(machine.platform, "system", lambda: "Linux")


def gpus(lab: Lab, *described: dict[str, Any], **environment: str) -> None:
    """Let the lab's commands find these GPUs."""
    folder = lab.root / "nvml"
    folder.mkdir(exist_ok=True)
    shutil.copy(Path(stub_nvml.__file__), folder / "pynvml.py")
    lab.environment |= {"PYTHONPATH": f"{folder}:{FAKE}:{REPOSITORY}", "STUB_GPUS": json.dumps(described)}
    lab.environment |= environment


@pytest.mark.parametrize(
    ("value", "devices", "said"),
    [
        ("1", ("1",), ""),
        ("1,0", ("1", "0"), ""),
        (" 1 , 1", ("1",), ""),
        ("GPU-8932f937-2222", ("1",), ""),
        ("GPU-a", ("2",), ""),
        ("GPU-8932f937", (), "is the beginning of several UUIDs"),
        ("GPU-", (), "is the beginning of several UUIDs"),
        ("G", (), "has no GPU 'G'"),
        ("7", (), "has no GPU '7'; it has: 0 (GPU-8932f937-1111), 1 (GPU-8932f937-2222), 2 (GPU-aaaa0000-3333)"),
        ("0,7,MIG-4c60", ("0",), "has no GPU '7' or 'MIG-4c60'"),
        ("all", (), "has no GPU 'all'"),
        ("", (), ""),
        ("-1", (), ""),
        ("1, -1,0", ("1",), ""),
        ("-1,0", (), ""),
        ("NoDevFiles", (), ""),
    ],
)
def test_words_of_cuda_visible_devices(
    monkeypatch: pytest.MonkeyPatch, value: str, devices: tuple[str, ...], said: str
) -> None:
    monkeypatch.setenv("STUB_GPUS", json.dumps([P400, A100, L4]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    found = machine.select(None)
    assert found.devices == devices
    assert said in found.ignored and bool(found.ignored) == bool(said)
    assert not said or found.ignored.startswith(f"CUDA_VISIBLE_DEVICES={value}: ")
    if said:
        with pytest.raises(MachineError, match="--gpus"):
            machine.select(None, value)
    else:
        assert machine.select(None, value).devices == devices


def test_mig_instances_are_devices_and_their_gpu_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_GPUS", json.dumps([L4, DIVIDED, {**P400, "instances": []}]))
    host = machine.select(None)
    assert host.devices == ("0", "1:0", "1:1")
    assert [(gpu.lock_name, gpu.memory) for gpu in host.gpus[1:]] == [
        ("MIG-one-1", 40 * 2**30),
        ("MIG-two-2", 40 * 2**30),
    ]
    assert host.visible(["1:1", "0"]) == ["MIG-two-2", "GPU-aaaa0000-3333"] and host.index("1:1") == 1
    assert nvml.divided_without_instances() == [2]
    chosen = {
        "MIG-two": ("1:1",),
        "MIG-two-2": ("1:1",),
        "1:0": ("1:0",),
        "1": ("1:0", "1:1"),
        "GPU-8932f937-2222": ("1:0", "1:1"),
        "GPU-8932": ("1:0", "1:1"),
    }
    for value, devices in chosen.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert (machine.select(None).devices, machine.select(None).ignored) == (devices, ""), value
    used = [{**INSTANCES[0], "processes": [2**30]}, INSTANCES[1]]
    monkeypatch.setenv("STUB_GPUS", json.dumps([{**A100, "instances": used}]))
    assert [nvml.memory_of_processes(0, gpu.lock_name) for gpu in machine.here().gpus] == [2**30, 0]
    assert [use.label for use in nvml.gpu_uses()] == ["0:0", "0:1"]


def test_without_a_uuid_the_index_is_handed_over() -> None:
    declared = machine.Machine("m", 1, 1, (machine.Gpu(0), machine.Gpu(1)), declared=True)
    assert declared.visible(["1"]) == ["1"] and declared.index("1") is None
    assert machine.Machine("mac", 1, 1, mps=True).visible(["mps"]) == ["mps"]
    assert gpu_locks.visible(["2"], []) == ["2"], "a job of Slurm holds no locks of its container's GPUs"


def test_a_variable_for_cuda_does_not_disable_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "here", lambda: machine.Machine("mac", 12, 24 * 2**30, mps=True))
    for value in ("0", "", "MIG-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert machine.select(None).devices == ("mps",) and not machine.select(None).ignored
    assert machine.select(None, "").devices == ()


def test_nvml_is_initialised_once_in_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_GPUS", json.dumps([P400, A100]))

    class Counting:
        depth = loads = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(stub_nvml, name)

        def nvmlInit(self) -> None:  # noqa: N802
            self.loads += self.depth == 0
            self.depth += 1

        def nvmlShutdown(self) -> None:  # noqa: N802
            self.depth -= 1

    counting = Counting()
    monkeypatch.setitem(sys.modules, "pynvml", counting)
    with nvml.session():
        for index in range(2):
            assert nvml.memory_of_processes(index) == 0
    assert (counting.loads, counting.depth) == (1, 0)


def test_a_native_run_trains_on_the_gpu_that_is_locked(lab: Lab) -> None:
    gpus(lab, P400, A100)
    lab.plan = {"*": {"until": str(lab.root / "gate")}}
    process = lab.start("submit", lab.job(seeds(1, "resources: {gpus: 1, gpu_memory: 40g, cpus: 1}\n")))
    (event,) = wait_for(lambda: lab.journal("begin"), "a run")
    assert event["env"]["CUDA_VISIBLE_DEVICES"] == A100["uuid"] and event["env"]["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert "device=cuda" in event["argv"] and lab.status("1").figures["devices"] == ["1"]
    assert gpu_locks.holder(str(A100["uuid"])) and not gpu_locks.holder(str(P400["uuid"]))
    (lab.root / "gate").touch()
    assert process.wait(60) == 0
    gpus(lab, P400, A100, CUDA_VISIBLE_DEVICES=str(P400["uuid"]))
    lab.plan = {"*": {"exit": 3}}
    assert lab.launcher("submit", lab.job(seeds(1, "resources: {gpus: 1, cpus: 1}\n"))).returncode == 1
    lab.launcher("exec", str(lab.submission() / "001-resnet34"))
    _, submitted, by_hand = lab.journal("begin")
    for event in (submitted, by_hand):
        assert event["env"]["CUDA_VISIBLE_DEVICES"] == P400["uuid"] and "device=cuda" in event["argv"]


def test_two_runs_have_an_instance_each(lab: Lab) -> None:
    gpus(lab, DIVIDED)
    lab.plan = {"*": {"until": str(lab.root / "gate")}}
    process = lab.start("submit", lab.job(seeds(3, "resources: {gpus: 1, cpus: 0.25, gpu_memory: 4g}\n")))
    began = wait_for(lambda: len(lab.journal("begin")) == 2 and lab.journal("begin"), "two runs")
    assert {event["env"]["CUDA_VISIBLE_DEVICES"] for event in began} == {"MIG-one-1", "MIG-two-2"}
    (lab.root / "gate").touch()
    assert process.wait(60) == 0
    refused = lab.launcher("submit", lab.job(seeds(1, "resources: {gpus: 2}\n")))
    assert refused.returncode == 64
    assert "job.yaml:3: resources.gpus: " in refused.stderr and "CUDA can use one MIG instance only" in refused.stderr


def test_a_run_on_several_gpus_gets_no_mig_instance(lab: Lab) -> None:
    gpus(lab, P400, DIVIDED, A100)
    lab.plan = {"*": {"exit": 3}}
    assert lab.launcher("submit", lab.job(seeds(1, "resources: {gpus: 2, cpus: 1}\n"))).returncode == 1
    lab.launcher("exec", str(lab.submission() / "001-resnet34"))
    submitted, by_hand = lab.journal("begin")
    for event in (submitted, by_hand):
        assert event["env"]["CUDA_VISIBLE_DEVICES"] == f"{P400['uuid']},{A100['uuid']}"


def test_a_lost_gpu_is_named_once_and_the_others_are_used(lab: Lab) -> None:
    gpus(lab, {**L4, "lost": True}, A100)
    job, said = (
        lab.job(seeds(1, "resources: {gpus: 1, cpus: 1}\n")),
        "GPU 0 cannot be used: the driver says: GPU is lost",
    )
    for command, code in (("plan", 0), ("submit", 0)):
        done = lab.launcher(command, job)
        assert (done.returncode, done.stdout.count(said)) == (code, 1), done.stdout + done.stderr
    (begun,) = lab.journal("begin")
    assert begun["env"]["CUDA_VISIBLE_DEVICES"] == A100["uuid"]
    doctor = lab.launcher("doctor").stdout
    assert doctor.count(said) == 1 and "A100" in doctor
    refused = lab.launcher("plan", job, "--set", "resources.gpus=2")
    assert f"2 GPU requested, 1 available (--cpu trains without a GPU); {said}" in unwrapped(refused.stdout)


def test_a_variable_that_names_nothing_known_is_told(lab: Lab) -> None:
    gpus(lab, P400, A100, CUDA_VISIBLE_DEVICES="MIG-4c60d78c")
    said = "CUDA_VISIBLE_DEVICES=MIG-4c60d78c: "
    have = "has no GPU 'MIG-4c60d78c'; it has: 0 (GPU-8932f937-1111), 1 (GPU-8932f937-2222)"
    told = lab.launcher("plan", lab.job(seeds(1)))
    assert told.returncode == 0 and f"note: {said}" in unwrapped(told.stdout) and have in unwrapped(told.stdout)
    told = lab.launcher("submit", lab.job(seeds(1)))
    assert told.returncode == 0 and f"note: {said}" in unwrapped(told.stdout) and have in unwrapped(told.stdout)
    wanted = lab.job(seeds(1, "resources: {gpus: 1}\n"))
    refused = lab.launcher("submit", wanted)
    assert refused.returncode == 64 and len(lab.journal("begin")) == 1
    assert "job.yaml:3: resources.gpus: " in refused.stderr and said in refused.stderr and have in refused.stderr
    checks = {check["what"]: check for check in json.loads(lab.launcher("doctor", "--json").stdout)}
    assert checks["gpu choice"]["level"] == "missing" and have in checks["gpu choice"]["said"]
    assert "CUDA_VISIBLE_DEVICES" in checks["gpu choice"]["mend"] and checks["gpu 1"]["said"] == "A100, 80 GiB"
    lab.plan = {"*": {"exit": 3}}
    assert lab.launcher("submit", wanted, "--gpus", "1").returncode == 1
    assert f"note: {said}" in unwrapped(lab.launcher("resume").stdout)
    by_hand = lab.launcher("exec", str(lab.submission() / "001-resnet34"))
    assert by_hand.returncode == 1 and said in by_hand.stderr


@pytest.mark.parametrize(
    ("value", "level", "said"),
    [(None, None, ""), ("1", "ok", "1"), ("1,9", "note", "has no GPU '9'"), ("", "note", "hides every GPU")],
)
def test_doctor_tells_which_gpus_the_variable_leaves(
    monkeypatch: pytest.MonkeyPatch, value: str | None, level: str | None, said: str
) -> None:
    from launcher.host import checks

    monkeypatch.setenv("STUB_GPUS", json.dumps([P400, A100]))
    if value is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    found = {check.what: check for check in checks._accelerator()}
    assert ("gpu choice" in found) == (level is not None)
    assert level is None or (found["gpu choice"].level == level and said in found["gpu choice"].said)


def test_a_container_gets_gpus_by_uuid(tmp_path: Path) -> None:
    from docker.types import DeviceRequest

    from launcher.record.request import RunRequest

    place = recipe.Place(image="i", entrypoint=(), user=(1, 1), cache=tmp_path, network=False)
    run_dir = tmp_path / "s" / "001-a"
    asked = RunRequest("001-a", 1, "train", ["train"])
    given = recipe.options(asked, place, run_dir, 1, ["1:0"], ["MIG-one-1"])
    (request,) = given["host_config"]["device_requests"]
    assert isinstance(request, DeviceRequest) and request.device_ids == ["MIG-one-1"]
    given = recipe.options(asked, place, run_dir, 1, ["1"], ["gpu1"])
    assert given["host_config"]["device_requests"][0].device_ids == ["1"]


def test_variables_of_the_launcher_cannot_be_passed_on(lab: Lab) -> None:
    names = ["CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "DATA_DIR", "LAUNCHER_DEVICES"]
    listed = ", ".join(names)
    refused = lab.launcher("plan", lab.job(seeds(1, f"env: [HOME, {listed}]\nsecrets: [HOME, {listed}]\n")))
    assert refused.returncode == 64
    for line, field in ((3, "env"), (4, "secrets")):
        for position, name in enumerate(names, start=1):
            said = f"job.yaml:{line}: {field}.{position}: {name}: the launcher itself sets this variable"
            assert said in refused.stderr
