"""Memory known before a run starts: the table, what is between its rows, micro-batches, refusals, plan and matrix."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.base.errors import JobError, MachineError
from launcher.base.sizes import GIB
from launcher.host.machine import BUILT_IN, Gpu, Machine
from launcher.job import expansion, spec
from launcher.memory import combinations, fitting, predict
from launcher.memory.predict import CONTEXT, DRIVER, Need
from launcher.record.journal import create_run
from launcher.record.request import Resources, read_request
from tests.launcher.cli.test_cli import launcher
from trainer.config.compose import compose
from trainer.config.keys import option_names

MODELS = [compose([f"model={name}"]).model.name for name in option_names("model")]


def card(*gib: int | None) -> Machine:
    """A machine with GPUs of so many GiB (None: not known)."""
    gpus = tuple(Gpu(index, memory=None if size is None else size * GIB) for index, size in enumerate(gib))
    return Machine("box", 16, 64 * GIB, gpus)


def expand(machine: Machine, *words: str, sets: tuple[str, ...] = (), cpu_only: bool = False) -> Any:
    return expansion.expand(spec.from_overrides(words, sets), machine, cpu_only)[0]


@pytest.fixture(autouse=True)
def no_trace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, ...]]:
    """No test traces anything but by its own leave: a trace takes seconds, and the table must do."""
    asked: list[tuple[str, ...]] = []

    def traced(words: tuple[str, ...], kept: Path) -> tuple[None, str]:
        asked.append(words)
        return None, "not here"

    monkeypatch.setenv("LAUNCHER_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(predict, "_traced", traced)
    return asked


# The table


@pytest.mark.parametrize("device", ["cuda", "mps"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", MODELS)
def test_the_table_has_every_model_and_grows_with_the_size(model: str, precision: str, device: str) -> None:
    sizes = range(384, 769, 32)
    needs = [predict.predict(model, size, precision, "adamw", device) for size in sizes]
    assert all(needs)
    images = [need.per_image for need in needs if need]
    assert images == sorted(images) and images[0] < images[-1]
    assert predict.predict(model, 352, precision, "adamw", device) is None
    assert predict.predict(model, 800, precision, "adamw", device) is None


@pytest.mark.parametrize(
    ("model", "batch", "size", "fp32", "bf16"),
    [
        ("resnet34", 16, 768, 5.9, 3.4),
        ("resnet34", 32, 768, 11.6, 6.5),
        ("resnet50", 16, 768, 15.5, 8.2),
        ("efficientnet_b4", 8, 768, 19.9, 10.2),
        ("efficientnet_b4", 32, 768, 79.2, 39.9),
        ("convnext_base", 4, 512, 5.5, None),
        ("convnext_base", 32, 768, 82.6, None),
        ("deit_base_patch16_384", 16, 384, 6.2, 4.1),
    ],
)
def test_the_table_agrees_with_an_earlier_trace(
    model: str, batch: int, size: int, fp32: float, bf16: float | None
) -> None:
    """Of another program, on the CPU, whose autocast normalises convnext's activations in bf16, as no GPU does."""
    for precision, expected in (("fp32", fp32), ("bf16", bf16)):
        need = predict.predict(model, size, precision)
        if expected is not None:
            assert need and need.at(batch, accumulates=False) / GIB == pytest.approx(expected, rel=0.02)


def test_padded_windows_are_in_the_table() -> None:
    """swin's windows are 12 × 12 patches of 4 px, halved three times: 384 px need no padding, 416 px much."""
    exact, padded = (predict.predict("swin_base_patch4_window12_384", size, "fp32") for size in (384, 416))
    assert exact and padded and padded.per_image > 1.2 * (416 / 384) ** 2 * exact.per_image


@pytest.mark.slow
@pytest.mark.parametrize(("model", "size"), [("resnet50", 448), ("convnext_base", 640), ("swin_base_patch4_window12_384", 448)])  # fmt: skip
def test_the_table_is_within_one_percent_of_a_trace(
    model: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    traced, why = predict.trace(model, size, "bf16", "adamw", "cuda", tmp_path)
    tabled = predict.predict(model, size, "bf16")
    assert traced and tabled, why
    for batch in (1, 4, 16):
        assert tabled.at(batch) == pytest.approx(traced.at(batch), rel=0.01)


def test_what_is_not_in_the_table_is_not_predicted() -> None:
    assert predict.predict("resnet18", 512, "fp32") is None
    assert predict.predict("resnet34", 512, "fp32", "lion") is None


def test_a_model_keeps_more_on_mps_where_attention_is_not_fused() -> None:
    fused, kept = (predict.predict("deit_base_patch16_384", 768, "fp32", "adamw", d) for d in ("cuda", "mps"))
    assert fused and kept and kept.per_image > 2 * fused.per_image


def test_sgd_needs_one_state_less() -> None:
    adamw, sgd = (predict.predict("convnext_base", 512, "fp32", optimizer) for optimizer in ("adamw", "sgd"))
    assert adamw and sgd and adamw.weights * 0.9 < adamw.fixed - sgd.fixed < adamw.weights * 1.1


@pytest.mark.parametrize(
    ("asked", "device", "column"),
    [("auto", "cuda", "bf16"), ("auto", "mps", "fp32"), ("fp32", "cuda", "fp32"), ("fp16", "cuda", "bf16"), ("bf16", "mps", "bf16")],
)  # fmt: skip
def test_precisions_are_columns(asked: str, device: str, column: str) -> None:
    assert predict.precision_of(asked, device) == column


# Micro-batches

needs = st.builds(
    Need, fixed=st.integers(0, 10_000), per_image=st.integers(1, 1000), spared=st.integers(0, 500), update=st.integers(0, 9000)
)  # fmt: skip


@given(needs, st.integers(0, 200_000), st.integers(1, 256))
def test_the_micro_batch_is_the_largest_divisor_that_fits(need: Need, budget: int, batch: int) -> None:
    micro = predict.fitting_micro_batch(need, budget, batch)
    fits = {n for n in range(1, batch + 1) if batch % n == 0 and need.at(n, n < batch) <= budget}
    assert micro == max(fits, default=None)


@given(needs, st.integers(1, 512))
def test_more_images_never_need_less(need: Need, micro: int) -> None:
    assert need.at(micro + 1) >= need.at(micro) >= need.update
    assert need.at(micro) >= need.at(micro, accumulates=False)


@given(st.sampled_from(MODELS), st.sampled_from(["fp32", "bf16"]), st.integers(0, 20 * GIB))
def test_the_largest_size_fits_and_the_next_does_not(model: str, precision: str, budget: int) -> None:
    size = predict.largest_size(model, precision, "adamw", budget)
    fitting = [s for s in range(384, 769, 32) if predict.predict(model, s, precision).at(1) <= budget]  # type: ignore[union-attr]
    assert size == max(fitting, default=None)


# Runs


def test_a_batch_that_does_not_fit_is_cut_and_the_run_stays_the_same_run() -> None:
    words = ("model=convnext_base", "training.batch_size=32")
    wide, narrow = expand(card(80), *words), expand(card(24), *words)
    assert wide.fit.micro_batch == 32 and wide.request.overrides == [*words]
    assert narrow.fit.micro_batch == 8 and narrow.why_not is None
    assert narrow.request.command == ["train", *words, "training.micro_batch=8"]
    assert narrow.request.overrides[-1] == "training.micro_batch=8"
    assert narrow.request.identity == wide.request.identity
    assert narrow.request.predicted_memory <= 24 * GIB < wide.request.predicted_memory
    compose(narrow.request.overrides)


def test_predicted_memory_survives_the_run_directory(tmp_path: Path) -> None:
    request = expand(card(24), "model=resnet50").request
    create_run(tmp_path / "run", request)
    assert read_request(tmp_path / "run").predicted_memory == request.predicted_memory > CONTEXT


def test_the_users_micro_batch_is_left_alone() -> None:
    planned = expand(card(24), "model=convnext_base", "training.batch_size=32", "training.micro_batch=32")
    assert planned.fit.words == () and planned.why_not is None
    assert planned.fit.fits_on == {"0": False} and "8 is" in planned.fit.notes[0]


def test_a_run_that_cannot_fit_is_refused_with_the_size_that_would() -> None:
    words = ("model=swin_base_384", "data=baseline_aug")
    planned = expand(card(4), *words)
    assert planned.why_not.startswith("box: needs 4.7 GiB at micro-batch 1, 4.0 GiB there; data.img_size=")
    size = int(planned.why_not.removesuffix(" would fit").rpartition("=")[2])
    assert 384 < size < 768 and planned.fit.fits_on == {"0": False} and planned.fit.words == ()
    assert expand(card(4), *words, f"data.img_size={size}").why_not is None
    assert expand(card(4), *words, f"data.img_size={size + 32}").why_not is not None
    with pytest.raises(JobError, match=r"001-swin_base_384: box: needs .*\nsee: launcher plan"):
        expansion.refuse_misfits([planned])


def test_where_no_size_would_fit_a_smaller_model_is_named() -> None:
    assert "model=resnet34" in expand(card(2), "model=convnext_base", "training.precision=fp32").why_not


def test_submit_refuses_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("{cpus: 4, memory: 32g, gpus: [{name: small, memory: 2g}]}")
    (tmp_path / "data").mkdir()
    words = [
        "model=deit_base_384",
        "--engine",
        "native",
        "--data",
        str(tmp_path / "data"),
        "--runs",
        str(tmp_path / "r"),
    ]
    done = launcher("submit", *words, "--machine", str(tmp_path / "m.yaml"))
    assert done.returncode == 64 and "needs " in done.stderr and not (tmp_path / "r").exists()


def test_devices_may_differ_and_the_micro_batch_fits_all_that_can_train_at_all() -> None:
    planned = expand(card(80, 24, 1), "model=convnext_base", "training.batch_size=32")
    assert planned.fit.micro_batch == 8 and planned.fit.fits_on == {"0": True, "1": True, "2": False}
    assert planned.why_not is None


def test_a_run_on_several_devices_shares_its_batch_among_them() -> None:
    words = ("model=convnext_base", "training.batch_size=64")
    one, two = (expand(card(24, 24), *words, sets=(f"resources.gpus={n}",)) for n in (1, 2))
    assert (one.fit.micro_batch, two.fit.micro_batch) == (8, 16)
    need = predict.predict("convnext_base", 768, "bf16")
    assert need and two.request.predicted_memory == need.at(8) + need.weights + CONTEXT
    lame = expand(card(24, 1), *words, sets=("resources.gpus=2",))
    assert lame.why_not and "at micro-batch 2" in lame.why_not, "both devices must hold it"


def test_a_cap_of_the_allocator_counts_as_its_memory() -> None:
    """Beside it there is the context, which the allocator does not see."""
    words = ("model=convnext_base", "training.batch_size=32")
    capped = expand(card(80), *words, sets=("resources.gpu_memory=23g",))
    assert capped.fit.micro_batch == 8 == expand(card(None), *words, sets=("resources.gpu_memory=23g",)).fit.micro_batch
    assert fitting.budgets(card(80, None), 23 * GIB) == {"0": 23 * GIB + DRIVER, "1": 23 * GIB + DRIVER}


def test_a_mac_lets_a_run_use_a_part_of_its_memory() -> None:
    mac = BUILT_IN["mac-m4-pro"]
    assert fitting.budgets(mac) == {"mps": 16 * GIB}
    planned = expand(mac, "model=resnet50", "training.batch_size=16")
    assert planned.fit.micro_batch == 8 and planned.request.predicted_memory < 16 * GIB, "fp32 there"


def test_where_a_devices_memory_is_not_known_nothing_is_refused_or_traced(no_trace: list[Any]) -> None:
    known = expand(card(None), "model=swin_base_384", "training.batch_size=512")
    assert known.why_not is None and known.fit.words == () and known.request.predicted_memory > 100 * GIB
    assert known.fit.fits_on == {}
    unknown = expand(card(None), "model.name=resnet18")
    assert unknown.request.predicted_memory is None and not no_trace


@pytest.mark.parametrize(
    ("machine", "words"),
    [(Machine("cpu", 4, 8 * GIB), ()), (card(2), ("device=cpu",))],
)
def test_on_a_cpu_nothing_is_predicted_or_traced(machine: Machine, words: tuple[str, ...], no_trace: list[Any]) -> None:
    for model in ("model=swin_base_384", "model.name=resnet18"):
        planned = expand(machine, model, *words)
        assert planned.request.predicted_memory is None and planned.why_not is None and not no_trace
    assert expand(card(1), "model=swin_base_384", cpu_only=True).why_not is None


def test_what_cannot_be_traced_is_said_and_not_refused(no_trace: list[Any]) -> None:
    planned = expand(card(1), "model.name=resnet18")
    assert no_trace and planned.why_not is None and planned.request.predicted_memory is None
    assert planned.fit.notes == ("the memory of resnet18 at 768 px is not known: not here",)


# Traces


def _line(**more: int) -> dict[str, int]:
    return {"fixed": 100, "per_image": 10, "spared": 1, "update": 50, "weights": 30, **more}


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """Counts the traces that are asked for, and answers them."""
    monkeypatch.undo()
    monkeypatch.setenv("LAUNCHER_RUNS", str(tmp_path / "runs"))
    asked: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        if "model.name=broken" in command:
            return subprocess.CompletedProcess(command, 64, "", "error: no such\n model\n")
        told = {"precisions": {"fp32": _line(), "bf16": _line(per_image=5)}}
        return subprocess.CompletedProcess(command, 0, json.dumps(told), "")

    predict._traced.cache_clear()
    monkeypatch.setattr(predict.subprocess, "run", run)
    return asked


def test_a_trace_is_made_once_and_kept(trainer: list[list[str]], tmp_path: Path) -> None:
    need, why = predict.trace("resnet18", 256, "bf16", "sgd", "cuda", tmp_path / "cache")
    assert need == Need(100, 5, 1, 50, 30) and why == ""
    assert trainer == [
        [sys.executable, "-m", "trainer", "estimate", "model.name=resnet18", "data.img_size=256", "training.optimizer=sgd", "device=cuda", "--json"]
    ]  # fmt: skip
    predict._traced.cache_clear()  # another process
    again, _ = predict.trace("resnet18", 256, "fp32", "sgd", "cuda", tmp_path / "cache")
    assert again == Need(100, 10, 1, 50, 30) and len(trainer) == 1


def test_checkpointed_gradients_are_in_no_table_and_traced(trainer: list[list[str]]) -> None:
    words = ("model=resnet34", "training.batch_size=32")
    assert expand(card(24), *words).fit.predicted and not trainer
    traced = expand(card(24), *words, "training.grad_checkpointing=true")
    assert "training.grad_checkpointing=true" in trainer[0] and len(trainer) == 1
    assert traced.fit.micro_batch == 32 and traced.fit.predicted == 100 + 32 * 5 - 1 + CONTEXT


@pytest.mark.parametrize("content", ["", "{", "[]", '{"words": [], "found": {}}'])
def test_a_damaged_cache_is_made_anew(trainer: list[list[str]], tmp_path: Path, content: str) -> None:
    predict.trace("resnet18", 256, "fp32", "adamw", "cuda", tmp_path)
    (kept,) = tmp_path.iterdir()
    whole = kept.read_text()
    kept.write_text(content)
    predict._traced.cache_clear()
    assert predict.trace("resnet18", 256, "fp32", "adamw", "cuda", tmp_path)[0] is not None
    assert len(trainer) == 2 and kept.read_text() == whole


def test_a_cache_that_cannot_be_written_is_no_trouble(trainer: list[list[str]], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert predict.trace("resnet18", 256, "fp32", "adamw", "cuda", tmp_path / "file")[0] is not None


def test_a_trace_that_fails_says_why(trainer: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert predict.trace("broken", 256, "fp32", "adamw", "cuda", tmp_path) == (None, "no such model")
    monkeypatch.setattr(predict.importlib.util, "find_spec", lambda name: None)
    assert predict.trace("other", 256, "fp32", "adamw", "cuda", tmp_path) == (None, "torch is not installed here")


def test_the_trainer_really_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    predict._traced.cache_clear()
    need, why = predict.trace("test_resnet", 64, "fp32", "adamw", "cuda", tmp_path)
    assert why == "" and need and need.per_image > 0 and need.update > need.weights > 0


# Commands


def test_plan_tells_memory_micro_batch_and_devices(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("{cpus: 8, memory: 64g, gpus: [{memory: 80g}, {memory: 24g}, {memory: 1g}]}")
    words = ("plan", "model=convnext_base,resnet34", "training.batch_size=32", "--machine", str(tmp_path / "m.yaml"))
    first, second = json.loads(launcher(*words, "--json").stdout)["runs"]
    assert (first["micro_batch"], second["micro_batch"]) == (8, 32)
    assert first["fits_on"] == {"0": True, "1": True, "2": False} and first["fits"]
    assert 12 * GIB < first["predicted_memory_bytes"] < 24 * GIB and first["manual_memory_gb"] == 28
    shown = launcher(*words).stdout
    assert "13.9 GiB" in shown and "✓ 0 ✓ 1 ✗ 2" in shown and "~28 GB" in shown and "effective batch stays" in shown


@pytest.mark.parametrize("machine", ["cuda-server", "mac-m4-pro", "mps-20gb"])
def test_matrix_answers_all_twelve_combinations(machine: str) -> None:
    told = json.loads(launcher("matrix", "--machine", machine, "--json").stdout)
    assert len({(row["model"], row["data"]) for row in told["combinations"]}) == 12
    budget = min(told["usable_memory_bytes"].values())
    for row in told["combinations"]:
        assert row["predicted_at_micro_batch_bytes"] <= budget and row["batch_size"] % row["micro_batch"] == 0
        assert (row["micro_batch"] < row["batch_size"]) == (row["predicted_memory_bytes"] > budget)
    manual = [row for row in told["combinations"] if row["manual_memory_gb"]]
    assert len(manual) == len(told["rows"])


def test_matrix_says_what_it_assumes() -> None:
    assert "80 GiB assumed" in launcher("matrix", "--machine", "cuda-server").stdout
    shown = launcher("matrix", "--machine", "cuda-server", "--memory", "24g").stdout
    assert "assumed" not in shown and "a run may use 24 GiB on GPU 0" in shown
    assert "not verified" in launcher("matrix", "--machine", "mac-m4-pro").stdout


def test_matrix_of_a_size_of_memory() -> None:
    told = {
        (row["model"], row["data"], row["batch_size"]): row
        for row in json.loads(launcher("matrix", "--memory", "4g", "--json").stdout)["combinations"]
    }
    swin = told["swin_base_384", "baseline_aug", 16]
    assert swin["micro_batch"] is None and 384 <= swin["largest_img_size"] < 768
    assert told["resnet34", "baseline_aug", 32]["micro_batch"] == 8
    assert launcher("matrix", "--memory", "lots").returncode == 64


def test_a_macs_memory_is_all_of_it() -> None:
    mac = combinations.with_memory(BUILT_IN["mac-m4-pro"], "48g")
    assert fitting.budgets(mac) == {"mps": 32 * GIB}
    with pytest.raises(MachineError, match="--memory"):
        combinations.with_memory(mac, "x")


def test_fit_leaves_a_batch_that_does_not_divide_to_the_trainer() -> None:
    composed = compose(["model=resnet34", "training.batch_size=5"])
    found = fitting.fit(composed, dataclasses.replace(Resources(), gpus=2), card(24, 24))
    assert found == fitting.Fit(5)


def test_averaged_weights_and_teachers_are_predicted(tmp_path: Path) -> None:
    legacy = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")  # how a file of torch.save began once
    (tmp_path / "teacher.ckpt").write_bytes(legacy.ljust(1000, b"0"))
    need = predict.predict("resnet34", 768, "bf16")
    plain, averaged = expand(card(24)), expand(card(24), "training.ema_decay=0.99")
    taught = expand(card(24), f"training.teachers=[{tmp_path}/teacher.ckpt]")
    assert need and averaged.request.predicted_memory - plain.request.predicted_memory == need.weights
    assert taught.request.predicted_memory - plain.request.predicted_memory == 1000
