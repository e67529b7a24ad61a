"""Which runs have which GPUs and cores at one time, within a submission and between them."""

from __future__ import annotations

import itertools
import time

from launcher.host import gpu_locks
from tests.launcher.conftest import Lab, seeds, wait_for


def overlaps(lab: Lab, key: str = "CUDA_VISIBLE_DEVICES") -> int:
    """How many pairs of runs had a GPU at the same time."""
    spans = []
    for begin in lab.journal("begin"):
        end = next(e for e in lab.journal("end") if e["pid"] == begin["pid"])
        spans.append((begin["env"][key].split(","), begin["time"], end["time"]))
    return sum(bool(set(a[0]) & set(b[0])) and a[1] < b[2] and b[1] < a[2] for a, b in itertools.combinations(spans, 2))


def test_each_gpu_has_one_run_at_a_time(lab: Lab) -> None:
    lab.plan = {"*": {"seconds": 0.3}}
    assert lab.launcher("submit", lab.job(seeds(6)), lab.machine(gpus=2)).returncode == 0
    used = {event["env"]["CUDA_VISIBLE_DEVICES"] for event in lab.journal("begin")}
    assert used == {"0", "1"} and overlaps(lab) == 0


def test_two_submissions_share_the_hosts_gpus(lab: Lab) -> None:
    lab.plan = {"*": {"seconds": 0.3}}
    machine, job = lab.machine(gpus=2), lab.job(seeds(3))
    both = [lab.start("submit", job, machine, f"--set=name={name}") for name in ("one", "two")]
    assert [process.wait(60) for process in both] == [0, 0]
    assert len(lab.journal("end")) == 6 and overlaps(lab) == 0


def test_a_gpu_that_another_holds_is_waited_for(lab: Lab) -> None:
    held = gpu_locks.acquire("gpu0", "somebody's run")
    assert held is not None
    process = lab.start("submit", lab.job(seeds(1)), lab.machine(gpus=1))
    assert process.stdout is not None
    line = next(line for line in process.stdout if "waiting" in line)
    assert "GPU 0 is held by somebody's run" in line and not lab.journal()
    held.close()
    assert process.wait(60) == 0


def one_gpu(lab: Lab, memory: str = "24g") -> str:
    (lab.root / "machine.yaml").write_text(f"{{gpus: [{{memory: {memory}}}], cpus: 16, memory: 64g}}")
    return "--machine=machine.yaml"


SHARED = "resources: {share_gpu: true, gpu_memory: 10g, cpus: 1}\n"


def test_runs_that_share_a_gpu_are_packed_by_memory_and_capped(lab: Lab) -> None:
    gate = lab.root / "gate"
    lab.plan = {"*": {"until": str(gate)}}
    process = lab.start("submit", lab.job(seeds(3, SHARED)), one_gpu(lab))
    wait_for(lambda: len(lab.journal("begin")) == 2, "two runs on one GPU")
    time.sleep(1)
    assert lab.states() == {"seed0": "running", "seed1": "running", "seed2": "queued"}, (
        "a third would need 30 of 24 GiB"
    )
    gate.touch()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "at most 2 at once" in output
    for event in lab.journal("begin"):
        assert event["env"]["CUDA_VISIBLE_DEVICES"] == "0"
        assert event["env"]["DEVICE_MEMORY_LIMIT"] == str(10 * 2**30)


def test_a_shared_gpu_is_no_other_submissions_whoever_dies(lab: Lab) -> None:
    gate = lab.root / "gate"
    lab.plan = {"seed0": {"seconds": 0.5}, "seed1": {"until": str(gate)}}
    machine = one_gpu(lab)
    first = lab.start("submit", lab.job(seeds(2, SHARED)), machine, "--set=name=first")
    wait_for(lambda: len(lab.journal("begin")) == 2, "two runs on one GPU")
    lab.plan = {"*": {"seconds": 0.1}}
    others = [
        lab.start("submit", lab.job(seeds(1, SHARED), "shares.yaml"), machine),
        lab.start("submit", lab.job(seeds(1), "alone.yaml"), machine),
    ]
    for other in others:
        assert other.stdout is not None
        line = next(line for line in other.stdout if "waiting" in line)
        assert "GPU 0 is held by first-" in line and "(runs that share it)" in line
    wait_for(lambda: lab.journal("end"), "the one that took the lock first to end")
    first.kill()
    first.wait()
    time.sleep(1)
    assert len(lab.journal("begin")) == 2, "one run of the first is still there"
    gate.touch()
    assert [other.wait(60) for other in others] == [0, 0]
    assert len(lab.journal("end")) == 4
    spans = sorted(event["time"] for event in lab.journal("end"))
    begins = lab.journal("begin")[2:]
    assert begins[0]["time"] >= spans[1] and begins[1]["time"] >= spans[2], "and the two never met each other"


def test_a_run_that_no_gpu_here_can_hold_fails_and_others_go_on(lab: Lab) -> None:
    gate = lab.root / "gate"
    lab.plan = {"*": {"until": str(gate)}}
    job = lab.job(seeds(2, SHARED + "max_parallel: 1\nafter: [{name: out, step: predict, from: {top: 1}}]\n"))
    process = lab.start("submit", job, one_gpu(lab))
    wait_for(lambda: lab.journal("begin"), "a run")
    process.kill()
    process.wait()
    gate.touch()
    wait_for(lambda: lab.states()["seed0"] == "succeeded", "its end")
    assert lab.launcher("resume", one_gpu(lab, "8g")).returncode == 1
    assert lab.states() == {"seed0": "succeeded", "seed1": "failed", "out": "failed"}
    assert lab.status("seed1").reason == "it needs 1 GPU with 10 GiB; this machine has 0"
    refused = lab.launcher("submit", job, one_gpu(lab, "8g"))
    assert refused.returncode == 64 and "job.yaml:3: resources.gpu_memory: " in refused.stderr
    assert "1 GPU with 10 GiB requested, 0 available" in refused.stderr


def test_runs_start_by_priority_and_then_the_longest_first(lab: Lab) -> None:
    include = (
        "include:\n  - {seed: 3, priority: 10}\n  - {seed: 2, training.epochs: 500}\n  - {seed: 0, priority: -1}\n"
    )
    done = lab.launcher("submit", lab.job(seeds(4, include + "max_parallel: 1\n")), lab.machine())
    assert done.returncode == 0, done.stderr
    assert [event["run"][:3] for event in lab.journal("begin")] == ["004", "003", "002", "001"]
    assert not any("priority" in word for event in lab.journal("begin") for word in event["argv"])


def test_runs_on_the_cpu_get_their_cores_and_no_gpu(lab: Lab) -> None:
    job = lab.job(seeds(2, "resources: {cpus: 2, gpus: 0, gpu_memory: 4g}\n"))
    assert lab.launcher("submit", job, lab.machine(gpus=1, cpus=2)).returncode == 0
    for event in lab.journal("begin"):
        assert event["env"]["CUDA_VISIBLE_DEVICES"] == "" and event["env"]["OMP_NUM_THREADS"] == "2"
        assert event["env"]["DEVICE_MEMORY_LIMIT"] == str(4 * 2**30)
        assert event["env"]["DATA_DIR"] == str(lab.root / "data")
    assert overlaps(lab, "OMP_NUM_THREADS") == 0, "two runs of two cores do not fit two cores"
