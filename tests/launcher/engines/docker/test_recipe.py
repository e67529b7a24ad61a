"""What a container gets: folders, network, memory, user; and how its messages name the host's folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from launcher.engines.docker import checks, recipe
from launcher.engines.docker.watched import ContainerAttempt, ending
from launcher.host.machine import Gpu, Machine
from launcher.job import expansion, remarks, spec
from launcher.record.request import Resources, RunRequest


def request(**more: Any) -> RunRequest:
    return RunRequest("001-x", 1, "train", **{"command": ["train", "model=resnet34"], **more})


@pytest.mark.parametrize(
    ("asked", "environment", "why"),
    [
        ({}, {}, None),
        ({"network": True}, {}, "network: true"),
        ({"network": False, "fetches": "resnet50"}, {}, None),
        ({"secrets": ["WANDB_API_KEY"]}, {"WANDB_API_KEY": "k"}, "W&B is online"),
        ({"secrets": ["WANDB_API_KEY"], "env": ["WANDB_MODE"]}, {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, None),
        ({"secrets": ["WANDB_API_KEY"]}, {}, None),
        ({"env": ["WANDB_MODE"]}, {"WANDB_MODE": "online"}, "W&B is online"),
        ({}, {"WANDB_MODE": "online"}, None),
        ({"fetches": "resnet50"}, {}, "weights of resnet50"),
        ({"fetches": "resnet34"}, {}, None),
        ({"fetches": "resnet18"}, {}, None),
        ({"fetches": "resnet26"}, {}, "weights of resnet26"),  # its download was cut short
        ({"fetches": "resnet10t"}, {}, None),
    ],
)
def test_a_container_has_a_network_for_a_reason(
    tmp_path: Path, asked: dict[str, Any], environment: dict[str, str], why: str | None
) -> None:
    (tmp_path / "weights" / "models--timm--resnet26.bt_in1k").mkdir(parents=True)
    stored = tmp_path / "weights" / "models--timm--resnet18.a1_in1k" / "snapshots" / "abc" / "model.safetensors"
    stored.parent.mkdir(parents=True)
    stored.touch()
    (tmp_path / "weights" / "resnet10t.safetensors").touch()
    reason = recipe.network_reason(request(**asked), environment, tmp_path, "resnet34,deit_base_384")
    assert (reason is None) == (why is None) and (why or "") in (reason or "")


def test_cached_weights_that_are_a_link_out_of_the_cache_are_not_there_for_a_container(tmp_path: Path) -> None:
    weights = tmp_path / "cache" / "weights"
    weights.mkdir(parents=True)
    (tmp_path / "elsewhere").touch()
    (weights / "real").touch()
    (weights / "resnet34.safetensors").symlink_to(tmp_path / "elsewhere")
    (weights / "resnet50.safetensors").symlink_to("real")
    why = recipe.network_reason(request(fetches="resnet34"), {}, tmp_path / "cache", "")
    assert why is not None and f"{weights}/resnet34.safetensors leads out of the cache" in why
    assert recipe.network_reason(request(fetches="resnet50"), {}, tmp_path / "cache", "") is None
    assert recipe.is_stored("resnet34", tmp_path / "cache"), "a native run reads it"


def test_paths_of_the_host_are_mounted_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "w.pth").touch()
    (tmp_path / "d").mkdir()
    (tmp_path / "vote").mkdir()
    (tmp_path / "vote" / "ensemble.json").write_text('{"members": [{"checkpoint": "../a b.ckpt"}]}')
    (tmp_path / "a b.ckpt").touch()
    command = ["train", "model.weights=w.pth", f"data.root='{tmp_path}/d'", "resume=@runs/a/001-b/last.ckpt", "seed=1"]
    told, files = recipe.words(request(command=command, cwd=str(tmp_path)), tmp_path, tmp_path / "cache")
    assert told == [
        "train",
        f"model.weights={tmp_path}/w.pth",
        f"data.root={tmp_path}/d",
        "resume=/runs/a/001-b/last.ckpt",
        "seed=1",
    ]
    assert files == [tmp_path / "w.pth", tmp_path / "d"]
    taught = request(command=["train", "training.teachers=[vote/ensemble.json,'a b.ckpt']"], cwd=str(tmp_path))
    told, files = recipe.words(taught, tmp_path, tmp_path / "cache")
    assert told[1] == f"training.teachers=[{tmp_path}/vote/ensemble.json,'{tmp_path}/a b.ckpt']"
    assert files == [tmp_path / "vote" / "ensemble.json", tmp_path / "a b.ckpt", tmp_path / "a b.ckpt"]
    (tmp_path / "last.ckpt").touch()
    assert (
        recipe.words(request(command=command, cwd=str(tmp_path)), tmp_path, tmp_path / "cache")[0][-1] == "resume=auto"
    )
    with pytest.raises(FileNotFoundError, match=r"model\.weights=gone\.pth: no such file"):
        recipe.words(
            request(command=["train", "model.weights=gone.pth"], cwd=str(tmp_path)), tmp_path, tmp_path / "cache"
        )
    with pytest.raises(FileNotFoundError, match=r"training\.teachers=gone\.ckpt: no such file"):
        recipe.words(
            request(command=["train", "training.teachers=[gone.ckpt]"], cwd=str(tmp_path)), tmp_path, tmp_path / "cache"
        )


def test_a_message_of_a_container_speaks_of_the_hosts_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CACHE_DIR", raising=False)
    asked = request(data_dir="/srv/data/docs", command=["train", "model.weights='/data/w.pth'"])
    run_dir = Path("/home/me/runs/job-1/001-x")

    def told(text: str) -> str:
        return recipe.on_host(text, asked, run_dir)

    assert told("/data: the data folder (DATA_DIR) is empty") == "/srv/data/docs: the data folder (DATA_DIR) is empty"
    assert told("2 faults in /data: mend") == "2 faults in /srv/data/docs: mend"
    assert told("see /runs/job-1/001-x/data_faults.txt") == "see /home/me/runs/job-1/001-x/data_faults.txt"
    assert told("DATA_DIR=/data, '/cache/weights'.") == "DATA_DIR=/srv/data/docs, '/home/me/runs/.cache/weights'."
    for kept in ("/database", "/mnt/data/x", "/data-2/x", "/data.old", "https://host/data", "file:///data", "a/runs/b"):
        assert told(kept) == kept
    assert told("/data/w.pth: no weights; /data/a.jpg") == "/data/w.pth: no weights; /srv/data/docs/a.jpg"
    assert recipe.on_host("/runs/a, /data/b", asked) == "/runs/a, /srv/data/docs/b"
    assert recipe.on_host("/data/b", request(data_dir=None)) == "/data/b", "nothing is mounted there"


def test_memory_limits_leave_no_swap_and_shm_has_a_sane_size(tmp_path: Path) -> None:
    place = recipe.Place("sha256:1", ("python",), (1000, 1000), cache=tmp_path)

    def host(loader_shm: int = 0, **resources: Any) -> dict[str, Any]:
        asked = request(resources=Resources(**resources), loader_shm=loader_shm)
        options: dict[str, Any] = recipe.options(asked, place, tmp_path / "s" / "001-x", 1, [], [])["host_config"]
        return options

    assert host(memory=4 * 2**30)["memswap_limit"] == 4 * 2**30 and host(memory=4 * 2**30)["shm_size"] == 2 * 2**30
    assert host(memory=4 * 2**30, shm=2**20)["shm_size"] == 2**20
    assert "mem_limit" not in host() and host()["shm_size"] == 2**30
    assert host(3 * 2**30)["shm_size"] == 3 * 2**30 and host(3 * 2**30, shm=2**20)["shm_size"] == 2**20


def loaded(words: list[str], text: str = "") -> spec.Job:
    return spec.load(Path("job.yaml"), words, source=text.encode() or b"name: x")


def test_the_loader_of_a_run_fits_its_shared_memory() -> None:
    """With the manual's settings on a GPU server: 15 processes of 4 batches of 16 images of 768 px, for each loader."""
    server = Machine("server", 16, 64 * 2**30, (Gpu(0),), declared=True)
    words = ["model=resnet34", "data=baseline_aug"]
    (planned, step) = expansion.expand(loaded(words, "after: [{name: vote, step: ensemble, from: {top: 1}}]"), server)
    filled = 2 * (15 * 4 + 2) * 16 * 768**2 * 3
    assert planned.request.loader_shm == step.request.loader_shm == recipe.shm_size(planned.request) == filled > 2**31
    (small,) = expansion.expand(loaded([*words, "training.num_workers=2", "training.micro_batch=4"]), server)
    assert small.request.loader_shm == 2 * (2 * 4 + 2) * 4 * 768**2 * 3 and recipe.shm_size(small.request) == 2**30
    (cpu,) = expansion.expand(loaded([*words, "training.num_workers=0"]), server, cpu_only=True)
    assert cpu.request.loader_shm == 0


def test_shared_memory_that_the_loader_overfills_is_noted_with_its_line() -> None:
    server = Machine("server", 16, 64 * 2**30, (Gpu(0),), declared=True)
    job = loaded(["model=resnet34", "data=baseline_aug"], "resources:\n  shm: 100m\n")
    planned = expansion.expand(job, server)
    noted = [line for line in remarks.before_start(job, planned, server, contained=True) if "resources.shm" in line]
    assert len(noted) == 1 and noted[0].startswith("note: job.yaml:2: resources.shm: 100 MiB, but the image loading")
    assert not [line for line in remarks.before_start(job, planned, server) if "may fill" in line], "native: no limit"


@pytest.mark.parametrize(
    "text",
    ["error: /dev/shm (64 MiB) is full: use", "RuntimeError: unable to allocate shared memory(shm) for file <x>"],
)
def test_an_end_for_lack_of_shared_memory_names_the_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "log.txt").write_text(f"working\n{text}\n")
    asked = request(resources=Resources(shm=64 * 2**20), shm_place="job.yaml:3")
    state = {"ExitCode": 1, "StartedAt": "", "FinishedAt": ""}
    word, reason, _ = ending(ContainerAttempt(tmp_path, 1, asked), state, False)
    assert word == "failed" and reason.endswith("; raise resources.shm: 64 MiB (job.yaml:3)")


def test_the_runs_user_is_never_root(tmp_path: Path) -> None:
    assert recipe.run_user(tmp_path) == ((1000, 1000) if os.getuid() == 0 else (os.getuid(), os.getgid()))
    assert recipe.run_user(tmp_path, rootless=True) == (0, 0), "which is the caller, outside"
    if os.getuid() == 0:
        os.chown(tmp_path, 4321, 1234)
        assert recipe.run_user(tmp_path) == (4321, 1234)


@pytest.mark.parametrize(
    ("driver", "built", "level", "words"),
    [
        ((13, 0), "13.0", "ok", ""),
        ((12, 4), "12.8", "ok", "supports CUDA 12.4"),
        ((12, 4), "13.0", "missing", "TORCH_INDEX=<PyTorch's wheel index>/cu126"),
        ((12, 8), "13.0", "missing", "/cu128"),
        ((11, 8), "13.0", "missing", "install a newer driver: no wheel"),
        ((13, 0), None, "missing", "launcher build cuda"),
        (None, "13.0", "note", ""),
    ],
)
def test_a_driver_that_is_too_old_for_the_image_is_told_with_the_index_that_fits(
    driver: tuple[int, int] | None, built: str | None, level: str, words: str
) -> None:
    check = checks.cuda_check(driver, built, "2.14.1")
    assert check.level == level and words in check.said + check.fix
