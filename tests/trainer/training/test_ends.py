"""What ends a run well: a last batch of one image, last.ckpt by time, a stop of several processes, short warm-ups, one
run of W&B."""

from __future__ import annotations

import re
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.conftest import TINY
from trainer.base import cores
from trainer.base.errors import ConfigError
from trainer.config.compose import compose
from trainer.data import check, duplicates
from trainer.images import examined
from trainer.models import checkpoint
from trainer.training import keep, run, state, step, stop, tracking
from trainer.training.state import Saved
from trainer.training.stop import Poll, Stop

Train = Callable[..., int]


# -- a last batch of one image


def test_a_last_batch_of_one_image_trains_with_the_stored_statistics(
    tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 32 px the last layers have one value per channel: batch normalisation of one image is not defined."""
    sizes, take = [], step.take

    def watched(learner: step.Step, batches: list[Any], number: int) -> int:
        before = {key: value.clone() for key, value in learner.bare.named_buffers()}
        sizes.append([len(batch[0]) for batch in batches])
        images = take(learner, batches, number)
        changed = any(not torch.equal(value, before[key]) for key, value in learner.bare.named_buffers())
        assert changed == (sizes[-1] != [1]), "one image alone changes no statistics"
        assert all(module.training for module in learner.bare.modules())
        return images

    monkeypatch.setattr(step, "take", watched)
    words = ["data.img_size=32", "training.drop_last=false", "training.batch_size=9", "training.epochs=1"]
    assert train(tmp_path / "run", *words) == 0  # 28 images
    assert sizes == [[9], [9], [9], [1]]
    sizes.clear()
    assert train(tmp_path / "micro", *words, "training.micro_batch=3") == 0
    assert sizes[-1] == [1]


def test_one_image_at_a_time_is_refused_in_words(
    tmp_path: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", "data.img_size=32", "training.batch_size=4", "training.micro_batch=1") == 64
    assert "cannot train on one image of 32 px at a time" in capsys.readouterr().err


# -- last.ckpt by time


def test_last_ckpt_is_due_by_time_and_not_by_short_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    small, large = Saved(at=1000.0, took=0.01), Saved(at=1000.0, took=5.0)
    now = 1010.0
    assert small.due(epoch_ended=True) and not small.due(epoch_ended=False)
    assert not large.due(epoch_ended=True), "5 s of every 10"
    now = 1101.0
    assert large.due(epoch_ended=True) and not large.due(epoch_ended=False)
    now = 1601.0
    assert large.due(epoch_ended=False) and small.due(epoch_ended=False)


def test_a_long_epoch_is_saved_within_it_and_short_ones_are_not_each(
    tmp_path: Path, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves: list[tuple[int, int]] = []
    save = keep.save_last

    def saving(of: state.Run) -> None:
        saves.append((of.progress.epoch, of.progress.step_in_epoch))
        save(of)

    monkeypatch.setattr(keep, "save_last", saving)
    words = [*TINY, f"data.root={documents}", "training.batch_size=8", "training.epochs=4", "training.lr=1e-12"]
    config = compose([*words, "training.min_lr=0", "training.weight_decay=0"])
    for seconds, share in ((0.0, 1.0), (1e9, 0.0)):
        saves.clear()
        monkeypatch.setattr(state, "SAVE_SECONDS", seconds)
        monkeypatch.setattr(state, "SAVE_SHARE", share)
        run.train(config, tmp_path / str(share), Stop())
        assert saves.pop() == (4, 0), "the end"
        if share:
            assert {(epoch, inside) for epoch in range(4) for inside in (1, 2, 3)} <= set(saves), "every step"
        else:
            assert 1 <= len(saves) < 4 and all(inside for _, inside in saves), "the bests alone, and no end of an epoch"
    assert keep.read_last(tmp_path / "0.0" / "last.ckpt")["progress"]["epoch"] == 4


# -- a stop of several processes


def test_several_processes_ask_each_other_about_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked = 0.0, []
    monkeypatch.setattr(stop, "time", types.SimpleNamespace(monotonic=lambda: now))

    class Fabric:
        """Two processes, of which the other one is slower."""

        device = torch.device("cpu")
        other = 0.0

        def all_reduce(self, mine: torch.Tensor, reduce_op: str) -> torch.Tensor:
            assert reduce_op == "max"
            asked.append(now)
            return torch.maximum(mine, torch.tensor([self.other, 0.02]))

    fabric, poll = Fabric(), Poll(_asked=0.0)
    for number in range(1, 1001):
        now += 0.01
        if poll.due(number):
            assert not poll.ask(fabric, False, number)
    assert poll.every == 50 and 19 <= len(asked) <= 22, "every 50 steps of 0.02 s, not every step"
    fabric.other = 1.0
    assert poll.ask(fabric, False, 1000), "the other process has a signal"
    fabric.other = 0.0
    assert poll.ask(fabric, True, 1000)


# -- warm-up


@pytest.mark.parametrize(("epochs", "warmup", "steps"), [(2, 5, 2), (24, 5, 24), (25, 5, 50), (50, 10, 100), (3, 0, 0)])
def test_the_warm_up_of_a_short_run_is_a_tenth_of_it(epochs: int, warmup: float, steps: int) -> None:
    training = compose([f"training.epochs={epochs}", f"training.warmup_epochs={warmup}"]).training
    total = epochs * 10
    assert step.warmup_steps(training, 10, total) == pytest.approx(steps)
    rates = [step.learning_rate(training, number, 10, total) for number in range(total)]
    assert max(rates) == pytest.approx(training.lr, rel=0.02) and rates[-1] < 0.02 * training.lr


def test_a_short_warm_up_is_said_and_recorded(tmp_path: Path, train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run", "training.epochs=2", "training.batch_size=4") == 0
    said = capsys.readouterr().out
    assert "note: training.warmup_epochs=5 is long for a run of 14 steps; the warm-up ends after a tenth" in said
    assert re.search(r'"warmup_steps": 1\b', (tmp_path / "run" / "metrics.json").read_text())


def test_balanced_sampling_and_class_weights_would_count_twice() -> None:
    with pytest.raises(ConfigError, match=r"rare classes would count twice; add training\.class_weights=false"):
        compose(["training.balanced_sampling=true"])
    compose(["training.balanced_sampling=true", "training.class_weights=false"])


# -- cores


def test_threads_are_counted_from_the_cores_of_this_process(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int | None] = []

    class Pool(examined.ThreadPoolExecutor):
        def __init__(self, max_workers: int | None = None, *rest: Any, **more: Any) -> None:
            asked.append(max_workers)
            super().__init__(max_workers, *rest, **more)

    monkeypatch.setattr(cores, "available", lambda: 3)
    for module in (examined, duplicates, check):
        monkeypatch.setattr(module, "ThreadPoolExecutor", Pool)
    monkeypatch.setenv("DATA_DIR", str(documents))
    from trainer.cli.main import main

    assert main(["check-data"]) == 0
    assert len(asked) >= 2 and set(asked) == {3}


# -- W&B


def test_all_attempts_of_a_run_are_one_run_of_wandb(
    tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    calls: list[dict[str, Any]] = []

    class Online:
        summary: dict[str, Any] = {}  # noqa: RUF012

        def log(self, *_: Any, **__: Any) -> None: ...

        def finish(self, **_: Any) -> None: ...

    def init(**words: Any) -> Online:
        calls.append(words)
        return Online()

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setenv("WANDB_MODE", "online")
    words = ["training.batch_size=8", "training.epochs=3", "training.warmup_epochs=0"]
    assert train(tmp_path / "run", *words, "training.max_steps=1") == 0
    assert train(tmp_path / "run", *words, "training.max_steps=2", "resume=auto") == 0
    assert train(tmp_path / "other", *words, "training.max_steps=1") == 0
    first, second, other = calls
    assert first["id"] == second["id"] == (tmp_path / "run" / tracking.ID_FILE).read_text().strip() != other["id"]
    assert second["resume"] == "allow" and second["allow_val_change"] is True
    assert first["config"]["choices"]["model"] == "test_resnet"
    (tmp_path / "run" / tracking.ID_FILE).write_text("not/an id\n")
    assert re.fullmatch(r"[0-9a-f]{8}", tracking._run_id(tmp_path / "run"))
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    assert tracking._run_id(tmp_path / "run") == "mine"


# -- the model on record


def test_the_model_on_record_is_the_one_that_trained(tmp_path: Path, train: Train) -> None:
    assert compose(["model.name=resnet10t"]).choices["model"] == "resnet10t"
    assert compose(["model=swin_base_384"]).choices["model"] == "swin_base_384"
    assert compose(["model.name=resnet34"]).choices["model"] == "resnet34"
    assert train(tmp_path / "run", "training.max_steps=1", "training.batch_size=8") == 0
    assert '"model": "test_resnet"' in (tmp_path / "run" / "metrics.json").read_text()
    assert "  model: test_resnet\n" in (tmp_path / "run" / "config.yaml").read_text()
    assert checkpoint.load(tmp_path / "run" / "best.ckpt").config["choices"]["model"] == "test_resnet"
