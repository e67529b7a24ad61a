"""Runs as containers of a real Docker engine, over a trainer that keeps the contract and takes milliseconds."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from docker.errors import ImageNotFound

from launcher.engines.docker import image_marks, leftovers, recipe
from launcher.job.matrix import override_value
from launcher.record.find import find_run, list_runs
from launcher.record.journal import read_status
from launcher.record.request import RunRequest, read_request
from launcher.record.states import ENDED
from tests.docker_engine import Dockerd
from tests.launcher.boxes import MIB, containers, job, journal, one_container, submit
from tests.launcher.conftest import LABEL, Lab, unwrapped, wait_for


def test_containers_leave_what_processes_leave(box: Lab, dockerd: Dockerd, image: str) -> None:
    elsewhere = box.root / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "1.jpg").touch()
    (box.root / "data" / "train" / "b").symlink_to(elsewhere)
    box.plan = {
        "seed0": {"f1": 0.7, "print": "error: not really", "seconds": 0.6},
        "seed1": {"f1": 0.9, "until": "/data/train/b/1.jpg"},
    }
    after = "after:\n  - {name: vote, step: ensemble, from: {top: 2}}\n  - {name: out, step: predict, needs: [vote]}\n"
    done = submit(box, job(box, image, 2, after))
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(box.states().values()) == {"succeeded"} and containers(dockerd, box) == []
    said = unwrapped(done.stdout)
    assert f"containers of {image}" in said
    assert f"read-only, where links of the data lead: {box.root}/data/train/b → {elsewhere}" in said
    submission = box.submission()
    argv = {event["run"].partition("-")[2]: event["argv"] for event in journal(box, "begin")}
    inside = f"/runs/{submission.name}"
    assert argv["vote"][2:] == [f"{inside}/002-seed1/best.ckpt", f"{inside}/001-seed0/best.ckpt"]
    assert argv["out"] == ["predict", "--checkpoint", f"{inside}/003-vote/ensemble.json"]
    assert argv["seed0"] == ["train", "model=resnet34", "model.pretrained=false", "seed=0", "resume=auto"]
    figures = box.status("1").figures
    assert figures["exit_code"] == 0 and figures["oom_killed"] is False and 0.5 < figures["seconds"] < 30
    assert 3 * MIB < figures["peak_host_memory_bytes"] < 500 * MIB
    log = (submission / "001-seed0" / "log.txt").read_text().splitlines()
    assert log[0].startswith("--- attempt 1, ") and log[1:] == ["working", "error: not really"]
    resolved = json.loads((submission / "submission.json").read_text())
    assert resolved["engine"] == "docker" and resolved["image"]["id"].startswith("sha256:")


def test_a_container_has_what_the_job_says_and_nothing_else(box: Lab, dockerd: Dockerd, image: str) -> None:
    gate = box.root / "data" / "gate"
    box.plan = {"*": {"until": "/data/gate"}}
    box.environment |= {"UNASKED": "of the host"}
    limits = "resources: {memory: 200m, cpus: 1.5, shm: 70m}\n"
    process = box.start("submit", job(box, image, 1, limits), "--engine", "docker", box.machine())
    details = one_container(dockerd, box).attrs
    gate.touch()
    assert process.wait(60) == 0
    host, config = details["HostConfig"], details["Config"]
    assert host["Memory"] == host["MemorySwap"] == 200 * MIB and host["NanoCpus"] == 1_500_000_000
    assert host["ShmSize"] == 70 * MIB and host["PidsLimit"] == 4096 and host["Init"] is True
    assert host["CapDrop"] == ["ALL"] and host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["ReadonlyRootfs"] is True and host["NetworkMode"] == "none" and not host["Privileged"]
    assert config["StopTimeout"] == 30 and config["User"] == "1000:1000"
    mounts = {mount["Target"]: mount.get("ReadOnly", False) for mount in host["Mounts"]}
    run_dir = list_runs(box.submission())[0]
    inside = f"/runs/{run_dir.parent.name}/{run_dir.name}"
    assert mounts == {inside: False, "/cache": False, "/data": True}
    labels = {key.partition(".")[2]: value for key, value in config["Labels"].items() if key.startswith("document-cl")}
    assert labels["submission"] == run_dir.parent.name and labels["run"] == run_dir.name and labels["attempt"] == "1"
    (event,) = journal(box, "begin")
    assert event["env"] == {
        "DATA_DIR": "/data", "HOME": "/tmp/home", "NVIDIA_VISIBLE_DEVICES": "void", "OMP_NUM_THREADS": "1"
    }  # fmt: skip
    assert event["uid"] == event["gid"] == 1000 and event["interfaces"] == ["lo"]


def test_a_container_cannot_leave_its_mounts(box: Lab, image: str) -> None:
    places = ["/", "/etc", "/data", "/runs", "/dev", "/tmp", "/compiled", "/cache"]
    box.plan = {"*": {"probe": places}}
    after = "after: [{name: vote, step: ensemble, from: {top: 1}}]\n"
    done = submit(box, job(box, image, 1, after))
    assert done.returncode == 0, done.stdout
    for name in ("001-resnet34", "002-vote"):
        tried = json.loads((box.submission() / name / "probe.json").read_text())
        written = {place for place in places if tried[place] == "written"}
        assert written <= {"/tmp", "/compiled", "/cache"} and "/cache" in written, tried
        assert tried["exec in /tmp"] is False and "unreachable" in tried["network"]
        assert {tried[key] for key in ("CapEff", "CapPrm", "CapBnd", "CapInh")} == {"0" * 16}
        assert tried["NoNewPrivs"] == "1"


def test_a_job_that_asks_for_a_network_has_one(box: Lab, image: str) -> None:
    assert submit(box, job(box, image, 1, "network: true\n")).returncode == 0
    (event,) = journal(box, "begin")
    assert len(event["interfaces"]) > 1 and box.status("1").state == "succeeded"


def test_a_run_that_has_to_fetch_weights_has_a_network_and_it_is_said(box: Lab, image: str) -> None:
    done = submit(box, job(box, image, 2, pretrained="true"))
    assert done.returncode == 0 and all(len(event["interfaces"]) > 1 for event in journal(box, "begin"))
    said = "2 of 2 runs have a network: the weights of resnet34 are neither in the image nor in "
    assert said in unwrapped(done.stdout)
    (box.runs / ".cache" / "weights").mkdir()
    (box.runs / ".cache" / "weights" / "resnet34.safetensors").touch()
    done = submit(box, job(box, image, 2, pretrained="true"))
    assert done.returncode == 0 and "network" not in done.stdout
    assert [len(event["interfaces"]) for event in journal(box, "begin")][2:] == [1, 1]


def test_secrets_are_files_of_the_run_and_nowhere_else(box: Lab, dockerd: Dockerd, image: str) -> None:
    gate = box.root / "data" / "gate"
    box.plan = {"*": {"until": "/data/gate"}}
    box.environment |= {"TOKEN": "hunter2-hunter2"}
    text = job(box, image, 1, "secrets: [TOKEN, NOT_SET]\n")
    process = box.start("submit", text, "--engine", "docker", box.machine())
    container = one_container(dockerd, box)
    (event,) = journal(box, "begin")
    told = json.dumps(container.attrs) + container.logs().decode()
    source = next(m["Source"] for m in container.attrs["Mounts"] if m["Destination"] == "/run/secrets")
    assert Path(source).stat().st_mode & 0o777 == 0o700 and (Path(source) / "TOKEN").stat().st_uid == 1000
    found = subprocess.run(
        ["grep", "-rl", "--exclude=journal", "hunter2", str(box.runs)], capture_output=True, text=True
    )
    gate.touch()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "hunter2" not in told + out + found.stdout
    assert event["secrets"] == {"TOKEN": ["hunter2-hunter2", "0o600"]} and "TOKEN" not in event["env"]
    assert event["env"]["SECRETS_DIR"] == "/run/secrets" and not Path(source).exists()


@pytest.mark.parametrize("way", ["its container is removed", "its launcher is killed", "both"])
def test_secrets_do_not_outlive_a_run_whatever_becomes_of_it(box: Lab, dockerd: Dockerd, image: str, way: str) -> None:
    box.plan = {"*": {"until": "/data/gate"}}
    box.environment |= {"TOKEN": "hunter2-hunter2"}
    process = box.start("submit", job(box, image, 1, "secrets: [TOKEN]\n"), "--engine", "docker", box.machine())
    container = one_container(dockerd, box)
    source = Path(next(m["Source"] for m in container.attrs["Mounts"] if m["Destination"] == "/run/secrets"))
    assert source.is_dir()
    if way != "its container is removed":
        process.kill()
        process.wait()
    if way == "its launcher is killed":
        (box.root / "data" / "gate").touch()
        wait_for(lambda: journal(box, "end"), "its end")
    else:
        container.remove(force=True)
    wait_for(lambda: box.launcher("status").returncode == 0 and box.status("1").state in ENDED, "word of its end")
    assert box.status("1").state == ("succeeded" if way == "its launcher is killed" else "lost")
    wait_for(lambda: not source.exists(), "the secrets to go")


def test_memory_that_is_too_little_names_the_line_to_change(box: Lab, image: str) -> None:
    box.plan = {"*": {"megabytes": 600}}
    done = submit(box, job(box, image, 1, "resources:\n  cpus: 1\n  memory: 300m\n"))
    status = box.status("1")
    assert done.returncode == 1 and status.state == "out_of_host_memory" and status.figures["oom_killed"]
    assert "300 MiB (job.yaml:7)" in status.reason and "launcher logs" in done.stdout
    assert status.figures["peak_host_memory_bytes"] > 290 * MIB


def test_a_run_that_takes_too_long_is_timed_out(box: Lab, dockerd: Dockerd, image: str) -> None:
    box.plan = {"*": {"until": "/data/never"}}
    done = submit(box, job(box, image, 1, "timeout: 1s\n"))
    assert done.returncode == 1 and box.status("1").state == "timed_out" and containers(dockerd, box) == []
    assert "the time limit of 1 s" in box.status("1").reason
    assert (box.submission() / "001-resnet34" / "last.ckpt").exists()


@pytest.mark.parametrize("way", ["Ctrl-C", "launcher stop", "twice"])
def test_a_request_to_stop_leaves_a_checkpoint_and_resume_goes_on(
    box: Lab, dockerd: Dockerd, image: str, way: str
) -> None:
    box.plan = {"*": {"until": "/data/gate", "stubborn": way == "twice"}}
    text = job(box, image, 2, "max_parallel: 1\n")
    process = box.start("submit", text, "--engine", "docker", box.machine())
    one_container(dockerd, box)
    if way == "launcher stop":
        stopped = box.launcher("stop")
        assert stopped.returncode == 0 and "001-seed0, 002-seed1" in stopped.stdout
    else:
        process.send_signal(signal.SIGINT)
    if way == "twice":
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert box.states() == {"seed0": "cancelled", "seed1": "cancelled"} and containers(dockerd, box) == []
    assert (box.submission() / "001-seed0" / "last.ckpt").exists() == (way != "twice")
    (box.root / "data" / "gate").touch()
    again = box.launcher("resume", box.machine())
    assert again.returncode == 0 and set(box.states().values()) == {"succeeded"}, again.stdout + again.stderr
    assert box.status("1").attempt == 2
    log = (box.submission() / "001-seed0" / "log.txt").read_text()
    assert "--- attempt 1" in log and "--- attempt 2" in log


def test_the_result_of_an_earlier_attempt_is_none_of_a_later_one(box: Lab, image: str) -> None:
    box.plan = {"*": {"exit": 3, "leaves": {"metrics.json": '{"val_f1": 0.9}', "best.ckpt": "weights"}}}
    assert submit(box, job(box, image)).returncode == 1
    assert (box.submission() / "001-resnet34" / "metrics.json").exists()
    box.plan = {"*": {"idle": True}}  # it ends with 0 and leaves nothing
    again = box.launcher("resume", box.machine())
    assert again.returncode == 1 and box.status("1").state == "failed", again.stdout + again.stderr
    assert box.status("1").reason.startswith("ended with exit code 0, but left no metrics.json")


def assert_exclusive(spans: list[tuple[str, float, float]]) -> None:
    for number, (gpu, begin, end) in enumerate(spans):
        for other, its_begin, its_end in spans[number + 1 :]:
            assert gpu != other or end <= its_begin or its_end <= begin


def test_gpus_are_pinned_by_id_and_exclusive_over_submissions(box: Lab, dockerd: Dockerd, image: str) -> None:
    box.plan = {"*": {"seconds": 0.5}}
    text, machine = job(box, image, 4), box.machine(gpus=2)
    processes = [box.start("submit", text, "--engine", "docker", machine) for _ in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    ends = {(e["run"], e["uid"], e["time"]): e for e in journal(box, "end")}
    assert len(ends) == 8
    spans = []
    for path in sorted(box.runs.glob("[!.]*/[!.]*/journal")):
        begin, end = (json.loads(line) for line in path.read_text().splitlines())
        spans.append((begin["env"]["NVIDIA_VISIBLE_DEVICES"], begin["time"], end["time"]))
    assert {gpu for gpu, _, _ in spans} == {"0", "1"}
    assert_exclusive(spans)


def test_a_run_cannot_rewrite_what_the_launcher_goes_by(box: Lab, image: str) -> None:
    """Not even with /runs mounted, as a step has it."""
    places = ["run.json", "events.jsonl", "exec.lock", "../.state/002-vote/run.json", "../.state/002-vote/events.jsonl"]
    box.plan = {"vote": {"overwrite": places}}
    after = "after: [{name: vote, step: ensemble, from: {top: 1}}]\n"
    assert submit(box, job(box, image, 1, after)).returncode == 0
    run_dir = find_run(box.runs, "2")
    tried = json.loads((run_dir / "overwritten.json").read_text())
    assert all(words != "changed" for name, words in tried.items() if "/" in name), tried
    assert read_request(run_dir).network is None and read_status(run_dir).state == "succeeded"


def test_links_that_a_run_leaves_lead_nobody_astray(box: Lab, dockerd: Dockerd, image: str) -> None:
    box.plan = {
        "*": {"until": "/data/gate", "links": {"status.json": "victim", "run.json": "victim", "log.txt": "victim"}}
    }
    process = box.start("submit", job(box, image), "--engine", "docker", box.machine())
    one_container(dockerd, box)
    run_dir = find_run(box.runs, "1")
    wait_for(lambda: (run_dir / "log.txt").is_symlink(), "the links")
    process.send_signal(signal.SIGINT)
    (box.root / "data" / "gate").touch()
    process.communicate(timeout=90)
    assert not (run_dir / "victim").exists() and box.status("1").state in ENDED


def test_a_name_in_use_is_said(box: Lab, dockerd: Dockerd, image: str) -> None:
    box.plan = {"*": {"until": "/data/gate"}}
    text = job(box, image, 2, "max_parallel: 1\n")
    process = box.start("submit", text, "--engine", "docker", box.machine())
    one_container(dockerd, box)
    name = recipe.name(box.submission() / "002-seed1", 1)
    other = dockerd.client().containers.create(image, name=name)
    try:
        (box.root / "data" / "gate").touch()
        assert process.wait(60) == 1
        assert box.states() == {"seed0": "succeeded", "seed1": "failed"}
        assert f"docker rm {other.name}" in box.status("2").reason
    finally:
        other.remove(force=True)


def test_a_file_that_the_run_names_is_mounted_or_missed(box: Lab, image: str) -> None:
    path = box.root / "it's mine.safetensors"
    path.write_text("w")
    word = "model.weights=" + override_value(path.name)
    assert submit(box, job(box, image), word).returncode == 0
    (event,) = journal(box, "begin")
    assert f"model.weights={override_value(str(path))}" in event["argv"]
    path.rename(box.root / "gone")
    done = submit(box, job(box, image), word)
    assert done.returncode != 0 and "no such file" in done.stdout + done.stderr + box.status("1").reason


@pytest.mark.parametrize(
    "name",
    ["it's.st", '"quoted".st', "back\\slash.st", "x y,z=[1]{a}.st", "$HOME.st", "ü.st", "'q'", "new\nline", "end\\"],
)
def test_a_files_name_may_have_any_characters(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    for key, value in (("model.weights", name), ("resume", name), ("training.teachers", [name])):
        word = f"{key}={override_value(value)}"
        request = RunRequest("001-a", 1, "train", ["train", word], cwd=str(tmp_path))
        given, files = recipe.words(request, tmp_path, tmp_path / "cache")
        path = str(tmp_path / name)
        assert files == [tmp_path / name]
        assert given[1] == f"{key}={override_value([path] if isinstance(value, list) else path)}"
        assert recipe.on_host(f"{path} is bad", request) == f"{path} is bad"


def test_what_docker_lacks_is_said_before_anything_starts(box: Lab, image: str) -> None:
    done = submit(box, job(box, "nobody/nothing:1"))
    assert done.returncode == 64 and "docker pull nobody/nothing:1" in done.stderr
    assert "job.yaml:1: image: the Docker engine has no image nobody/nothing:1" in done.stderr
    auto = box.launcher("submit", job(box, "nobody/nothing:1"), box.machine())
    assert (auto.returncode, auto.stderr) == (done.returncode, done.stderr), "no native run in its place"
    done = submit(box, box.job("overrides: {model.pretrained: false}"), "--set", "image=document-classifier:cpx")
    assert (
        done.returncode == 64
        and "the command line: image: the Docker engine has no image document-classifier:cpx" in done.stderr
    )
    box.environment |= {"DOCKER_HOST": "", "DOCKER_CONTEXT": "nowhere"}
    assert "the docker context nowhere does not exist; see: docker context ls" in submit(box, job(box, image)).stderr
    box.environment |= {"DOCKER_HOST": "ssh://somebody@localhost", "DOCKER_CONTEXT": ""}
    assert "pip install 'docker[ssh]'" in submit(box, job(box, image)).stderr
    box.environment["DOCKER_HOST"] = "unix:///nonexistent.sock"
    done = submit(box, job(box, image))
    assert done.returncode == 1 and "no Docker engine answers (nothing listens" in done.stderr
    assert not box.runs.exists() or not list(box.runs.iterdir())
    auto = box.launcher("submit", job(box, image), box.machine())
    assert auto.returncode == 0 and "native processes (auto: no Docker engine answers" in auto.stdout


def test_auto_is_docker_where_engine_and_image_are(box: Lab, image: str) -> None:
    done = box.launcher("submit", job(box, image), box.machine())
    assert done.returncode == 0 and f"containers of {image}, Docker" in unwrapped(done.stdout)
    assert "(auto: an engine and its image exist)" in unwrapped(done.stdout)


def test_data_that_the_runs_user_cannot_read_is_said(box: Lab, image: str) -> None:
    (box.root / "data").chmod(0o700)
    done = submit(box, job(box, image))
    assert done.returncode == 65 and "chmod -R a+rX" in done.stderr and "1000:1000" in done.stderr


def test_a_link_of_the_data_that_containers_must_not_follow_is_told_before_anything_starts(
    box: Lab, image: str
) -> None:
    (box.root / "data" / "train" / "b").symlink_to("/etc")
    done = box.launcher("plan", job(box, image), "--engine", "docker", box.machine(), "--data", "data")
    assert done.returncode == 65 and "train/b leads to /etc, a part of the system; copy the files" in done.stderr


def test_prune_shows_first_and_frees_what_is_never_missed(box: Lab, dockerd: Dockerd, image: str) -> None:
    box.plan = {"seed1": {"exit": 1}}
    assert submit(box, job(box, image, 2)).returncode == 1
    directory = box.submission()
    for name in ("001-seed0", "002-seed1"):
        (directory / name / "last.ckpt").write_bytes(b"x" * 1000)
    left = dockerd.client().containers.create(image, labels={LABEL: str(directory / "001-seed0")}, name="leftover")
    shown = box.launcher("prune")
    assert shown.returncode == 0 and "001-seed0/last.ckpt" in shown.stdout and "container leftover" in shown.stdout
    assert "002-seed1/last.ckpt" not in shown.stdout, "resume needs it"
    assert (directory / "001-seed0" / "last.ckpt").exists() and "nothing was freed" in shown.stdout
    freed = box.launcher("prune", "--yes")
    assert freed.returncode == 0 and not (directory / "001-seed0" / "last.ckpt").exists(), freed.stderr
    assert (directory / "002-seed1" / "last.ckpt").exists() and (directory / "001-seed0" / "best.ckpt").exists()
    assert left.name not in [each.name for each in dockerd.client().containers.list(all=True)]


def test_prune_leaves_replaced_images_that_other_runs_folders_need(box: Lab, dockerd: Dockerd, image: str) -> None:
    engine = dockerd.client()
    text = f'FROM {image}\nLABEL document-classifier.variant=cpu\nENV MADE_FOR="{box.root}"\n'
    built, _ = engine.images.build(fileobj=io.BytesIO(text.encode()))  # without a name, as a later build leaves it
    identity = str(built.id)
    try:
        box.plan = {"*": {"exit": 1}}  # a submission that resume may continue
        assert submit(box, job(box, identity)).returncode == 1
        here, elsewhere = box.runs, box.root / "other runs"
        elsewhere.mkdir()

        def listed(runs_root: Path) -> tuple[list[str], str]:
            remarks: list[str] = []
            found = leftovers.images_of(engine, runs_root, remarks)
            return [waste.what for waste in found if identity[7:19] in waste.what], "\n".join(remarks)

        assert listed(here) == ([], "")
        what, remarks = listed(elsewhere)
        assert what == [] and f"image {identity[7:19]} stays: unfinished submissions in {here} may need it" in remarks
        here.rename(box.root / "gone")
        (what, _), (again, _) = listed(elsewhere), listed(here)
        assert len(what) == len(again) == 1, "its submissions are gone"
        (waste,) = (w for w in leftovers.images_of(engine, elsewhere, []) if identity[7:19] in w.what)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DOCKER_HOST", dockerd.host)
            waste.free()
        assert not engine.volumes.list(filters={"label": f"{image_marks.IMAGE}={identity}"}), (
            "its marks are removed, too"
        )
    finally:
        for mark in engine.volumes.list(filters={"label": f"{image_marks.IMAGE}={identity}"}):
            mark.remove()
        with contextlib.suppress(ImageNotFound):
            engine.images.remove(identity, force=True)
