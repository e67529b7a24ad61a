"""The switches of training: losses, mixing, balanced batches, drop-path, layer decay, averaged weights, teachers."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.trainer.conftest import write_documents
from trainer.augment import mixing
from trainer.base import provenance
from trainer.base.errors import ConfigError
from trainer.cli.main import main
from trainer.config.compose import compose
from trainer.config.schema import DataConfig, TrainingConfig
from trainer.data import sampling
from trainer.data.rows import Table
from trainer.data.table import read_training, training_fingerprint
from trainer.models import build, checkpoint, losses
from trainer.training import teachers

Train = Callable[..., int]


def last(run: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(run / "last.ckpt", weights_only=True)
    return loaded


def test_the_loss_is_torchs_with_weights_and_smoothing() -> None:
    logits, targets, weights = torch.randn(6, 4), torch.tensor([0, 3, 1, 1, 2, 0]), torch.rand(4)
    for smoothing in (0.0, 0.2):
        terms = losses.by_class(logits, losses.wanted(targets, 4, smoothing), TrainingConfig())
        expected = cross_entropy(logits, targets, weight=weights, label_smoothing=smoothing, reduction="none")
        torch.testing.assert_close((terms * weights).sum(1), expected)


def test_focal_loss_is_that_of_its_paper_and_has_a_gradient_everywhere() -> None:
    logits, targets = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    p = logits.softmax(1)[range(5), targets]
    found = losses.by_class(logits, losses.wanted(targets, 3, 0.0), TrainingConfig(loss="focal", focal_gamma=2.0)).sum(
        1
    )
    torch.testing.assert_close(found, -((1 - p) ** 2) * p.log())
    sure = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    mild = TrainingConfig(loss="focal", focal_gamma=0.5)
    losses.by_class(sure, losses.wanted(torch.tensor([0]), 3, 0.0), mild).sum().backward()  # type: ignore[no-untyped-call]
    assert sure.grad is not None and torch.isfinite(sure.grad).all()


def test_the_distance_from_a_teacher_is_zero_for_its_equal_and_grows_with_temperature_squared() -> None:
    logits, other = torch.randn(4, 3), torch.randn(4, 3)
    assert losses.distance(logits, logits.softmax(1), 3.0).abs().max() < 1e-5
    p, q = (other / 3).softmax(1), (logits / 3).softmax(1)
    torch.testing.assert_close(losses.distance(logits, other.softmax(1), 3.0), 9 * (p * (p / q).log()).sum(1))


def test_mixing_is_drawn_from_seed_and_step_and_keeps_its_shares() -> None:
    training = compose(["training.mixup=0.4", "training.cutmix=1", "training.mix_probability=0.5"]).training
    drawn = [mixing.draw(training, 3, step, 64) for step in range(400)]
    assert drawn == [mixing.draw(training, 3, step, 64) for step in range(400)]
    assert drawn != [mixing.draw(training, 4, step, 64) for step in range(400)]
    mixed = [mix for mix in drawn if mix]
    boxes = [mix for mix in mixed if mix.box]
    assert 160 < len(mixed) < 240 and 70 < len(boxes) < 130
    own, partner = (
        torch.full((2, 3, 64, 64), 200, dtype=torch.uint8),
        torch.full((2, 3, 64, 64), 100, dtype=torch.uint8),
    )
    for mix in mixed[:40]:
        joined = mixing.images(mix, own, partner).float().mean()
        assert joined == pytest.approx(100 + 100 * mix.share, abs=1e-3 if mix.box else 0.5)
    assert mixing.draw(compose().training, 3, 0, 64) is None


def test_a_balanced_epoch_has_every_class_equally_often_and_is_drawn_anew() -> None:
    rows, targets = list(range(100, 130)), [0] * 20 + [1] * 7 + [2] * 3
    sampler = sampling.EpochSampler(rows, 5, 29, targets=targets)
    first = [row for _, row in sampler]
    counts = Counter(targets[row - 100] for row in first)
    assert len(first) == 29 and sorted(counts.values()) == [9, 10, 10]
    assert {row for row in first if row >= 127} == {127, 128, 129}, "no row of a class is left out before one repeats"
    sampler.set_position(1)
    second = [row for _, row in sampler]
    assert second != first
    sampler.set_position(1, skip=20)
    assert [row for _, row in sampler] == second[20:]
    halves = [sampling.EpochSampler(rows, 5, 28, rank, 2, targets) for rank in range(2)]
    assert [len(half) for half in halves] == [14, 14]


def test_drop_path_reaches_the_model_and_one_that_has_none_is_refused() -> None:
    made = build.create(compose(["model.name=test_vit", "model.drop_path=0.3"]).model, 3, 160, False)
    rates = [float(part.drop_prob) for part in made.modules() if type(part).__name__ == "DropPath"]  # type: ignore[arg-type]
    assert max(rates) == pytest.approx(0.3)
    with pytest.raises(ConfigError, match=r"model\.drop_path=0\.3: vgg11 has no stochastic depth"):
        build.create(compose(["model.name=vgg11", "model.drop_path=0.3"]).model, 3, 64, False)


def test_layer_decay_gives_each_layer_its_share_of_the_learning_rate(tmp_path: Path, train: Train) -> None:
    words = ["training.max_steps=1", "training.batch_size=8", "training.warmup_epochs=0", "training.scheduler=constant"]
    assert train(tmp_path / "run", *words, "training.layer_decay=0.5", "training.lr=0.01") == 0
    groups = last(tmp_path / "run")["optimizer"]["param_groups"]
    assert {group["lr"] for group in groups} == {0.01 * group["lr_scale"] for group in groups}
    assert max(group["lr_scale"] for group in groups) == 1 and len({group["lr_scale"] for group in groups}) > 2
    assert ",0.01," in (tmp_path / "run" / "history.csv").read_text()


def test_averaged_weights_are_what_is_validated_and_kept(tmp_path: Path, train: Train) -> None:
    words = ["training.epochs=3", "training.batch_size=4", "training.lr=0.01", "training.warmup_epochs=0"]
    assert train(tmp_path / "run", *words, "training.ema_decay=0.9", "training.keep_top=9") == 0
    state = last(tmp_path / "run")
    kept = [tmp_path / "run" / "best.ckpt", *(tmp_path / "run" / "top").iterdir()]
    (latest,) = [c for c in map(checkpoint.load, kept) if c.metrics["step"] == state["progress"]["step"]]
    for key, value in latest.state_dict.items():
        assert torch.equal(value, state["ema"][f"model.{key}"])
        if value.is_floating_point() and value.numel() > 1:
            assert not torch.equal(value, state["model"][f"model.{key}"]), key


def test_teachers_have_their_own_size_temperature_and_order_of_classes(trained: list[Path], tmp_path: Path) -> None:
    names = ["discs", "stripes", "boxes"]
    paths = [str(run / "best.ckpt") for run in trained]
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    both = teachers.load(paths, names, torch.device("cpu"), False)
    assert [teacher.img_size for teacher in both] == [64, 160]
    own = checkpoint.load(trained[0] / "best.ckpt")
    bare = build.restore(own.settings.model, 3, 64, own.state_dict).eval()
    logits = build.Normalized(bare, own.preprocessing["mean"], own.preprocessing["std"], False)(images)
    expected = (logits / own.temperature).softmax(1)[:, [2, 0, 1]]
    alone = teachers.probabilities(both[:1], images) / both[0].share
    torch.testing.assert_close(alone, expected.detach())
    mean = teachers.probabilities(both, images)
    torch.testing.assert_close(mean.sum(1), torch.ones(4))
    assert main(["ensemble", "--checkpoints", *paths, "--weights", "3", "1", "--output", str(tmp_path / "vote")]) == 0
    shares = [
        t.share
        for t in teachers.load([str(tmp_path / "vote" / "ensemble.json"), paths[0]], names, torch.device("cpu"), False)
    ]
    assert shares == [0.375, 0.125, 0.5]


def test_a_student_learns_from_its_teachers(trained: list[Path], tmp_path: Path, train: Train) -> None:
    """With a weight of 1 the labels count for nothing; else they do."""
    paths = ",".join(str(run / "best.ckpt") for run in trained)
    words = ["training=distill", f"training.teachers=[{paths}]", "training.max_steps=2", "training.batch_size=8"]
    for name, more in (("a", ["1"]), ("b", ["1", "training.label_smoothing=0.5"]), ("c", ["0.5"])):
        assert train(tmp_path / name, *words, "training.distill_weight=" + more[0], *more[1:]) == 0
    a, b, c = (last(tmp_path / name)["model"] for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a) and not all(torch.equal(a[key], c[key]) for key in a)


def test_a_teacher_that_may_have_seen_the_validation_images_is_named(
    trained: list[Path], tmp_path: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    same, other = trained[0] / "best.ckpt", tmp_path / "other.ckpt"
    kept = checkpoint.load(same)
    checkpoint.save(other, replace(kept, validation={**kept.validation, "split_fingerprint": "another"}))
    words = ["training=distill", "training.max_steps=1", "training.batch_size=8"]
    assert train(tmp_path / "fair", *words, f"training.teachers=[{same}]") == 0
    assert "may have trained on" not in capsys.readouterr().out
    assert train(tmp_path / "unfair", *words, f"training.teachers=[{same},{other}]") == 0
    assert f"warning: training.teachers: {other} may have trained on" in capsys.readouterr().out
    found = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("fair", "unfair")]
    assert [metrics["teachers_saw_validation"] for metrics in found] == [False, True]


def test_what_cannot_teach_is_refused_before_training(
    trained: list[Path], tmp_path: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "none", "training=distill") == 64
    assert "training=distill: no teacher given; add training.teachers=[best.ckpt]" in capsys.readouterr().err
    assert train(tmp_path / "gone", "training.teachers=[gone.ckpt]") == 64
    assert "training.teachers: gone.ckpt: checkpoint not found" in capsys.readouterr().err
    other = write_documents(tmp_path / "other")
    (other / "meta.csv").write_text("target,class_name\n0,stripes\n1,boxes\n2,rings\n")
    assert train(tmp_path / "other-run", f"training.teachers=[{trained[0] / 'best.ckpt'}]", data=other) == 64
    assert "the difference is: discs, rings" in capsys.readouterr().err
    assert not list(tmp_path.rglob("last.ckpt"))


def test_a_checkout_whose_state_git_cannot_tell_is_not_called_clean(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    (tmp_path / "code.py").write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    sha = provenance.git_sha(tmp_path)
    assert sha and provenance.revision(tmp_path) == sha
    (tmp_path / "code.py").write_text("22")
    assert provenance.revision(tmp_path) == f"{sha}-dirty"
    (tmp_path / ".git" / "index").write_bytes(b"damaged")
    assert provenance.revision(tmp_path) == f"{sha}-unknown"


def test_results_say_where_they_come_from(trained: list[Path], documents: Path, tmp_path: Path) -> None:
    made = json.loads((trained[0] / "metrics.json").read_text())
    kept = checkpoint.load(trained[0] / "best.ckpt").provenance
    table = read_training(documents, DataConfig())
    assert made["data_fingerprint"] == kept["data_fingerprint"] == training_fingerprint(table)
    assert len(kept["git_sha"].partition("-")[0]) == 40 and made["git_sha"] == kept["git_sha"]
    order = np.random.default_rng(0).permutation(len(table))
    lists = {name: [getattr(table, name)[row] for row in order] for name in ("ids", "paths", "targets")}
    turned = Table(**lists, class_names=table.class_names, labels=table.labels)
    assert training_fingerprint(turned) == kept["data_fingerprint"]
    turned.targets[0] = (turned.targets[0] + 1) % 3
    assert training_fingerprint(turned) != kept["data_fingerprint"]
