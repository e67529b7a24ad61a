"""Prediction and ensembles: the manual's own spellings, members of any size and class order, honest validation."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from tests.trainer.conftest import TINY, write_documents
from trainer.cli.main import main
from trainer.ensemble import voting
from trainer.models import checkpoint, ensemble_file
from trainer.scores import calibration


@pytest.fixture(autouse=True)
def data_dir(documents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_DIR", str(documents))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def stored(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)


def altered(source: Path, place: Path, **changes: object) -> Path:
    checkpoint.save(place, replace(checkpoint.load(source), **changes))  # type: ignore[arg-type]
    return place


def test_predict_writes_the_sample_submissions_ids_in_its_order(trained: list[Path], tmp_path: Path) -> None:
    assert main(["predict", f"checkpoint={trained[0] / 'best.ckpt'}"]) == 0
    written = rows(tmp_path / "submission.csv")
    assert [row["ID"] for row in written] == [f"t{n}.jpg" for n in reversed(range(6))]
    arrays = stored(tmp_path / "predictions.npz")
    assert arrays["probabilities"].shape == (6, 3)
    labels = arrays["labels"][arrays["probabilities"].argmax(1)]
    assert [row["target"] for row in written] == labels.tolist()


@pytest.mark.parametrize(
    ("meta", "train", "note"),
    [
        ("0,stripes\n1,boxes\n2,discs\n", "", ""),
        ("0,book\n1,will\n2,discs\n", "", "0 book, 1 will, 2 discs (3); the model has 0 stripes, 1 boxes, 2 discs (3)"),
        ("", "a.jpg,0\nb.jpg,1.0\nc.jpg,2\n", ""),
        ("", "a.jpg,0\nb.jpg,7\n", "0, 7 (2); the model has 0 stripes, 1 boxes, 2 discs (3)"),
        ("", "", ""),
    ],
)
def test_data_of_other_classes_than_the_models_are_noted(
    trained: list[Path], documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    meta: str, train: str, note: str,
) -> None:  # fmt: skip
    root = tmp_path / "others"
    shutil.copytree(documents / "test", root / "test")
    for name, header, content in (("meta.csv", "target,class_name", meta), ("train.csv", "ID,target", train)):
        if content:
            (root / name).write_text(f"{header}\n{content}")
    assert main(["predict", f"checkpoint={trained[0] / 'best.ckpt'}", f"data.root={root}"]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if "other classes" in line]
    assert notes == (
        [f"note: {root} has other classes than the model: {note}; the predictions are classes of the model"]
        if note
        else []
    )


@pytest.mark.parametrize(
    ("meta", "is_noted"),
    [("0,stripes\n1,boxes\n2,discs\n", False), ("0,book\n1,will\n2,discs\n", True), ("", False)],
)
@pytest.mark.parametrize("command", ["ensemble", "analyze", "label-errors"])
def test_other_commands_note_it_too(
    trained: list[Path], documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    command: str, meta: str, is_noted: bool,
) -> None:  # fmt: skip
    root = tmp_path / "others"
    shutil.copytree(documents / "test", root / "test")
    if meta:
        (root / "meta.csv").write_text(f"target,class_name\n{meta}")
    option = "--checkpoints" if command == "ensemble" else "--checkpoint"
    assert main([command, option, str(trained[0] / "best.ckpt"), "--data", str(root), "--output", "out"]) == 0
    note = f"note: {root} has other classes than the model: 0 book, 1 will, 2 discs (3); the model has "
    assert (note in capsys.readouterr().out) == is_noted


@pytest.mark.parametrize("file", ["best.ckpt", "ensemble.json"])
def test_the_note_on_other_classes_comes_before_the_work(
    trained: list[Path], documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    root, model = tmp_path / "others", trained[0] / "best.ckpt"
    if file == "ensemble.json":
        assert main(["ensemble", "--checkpoints", str(model), "--output", "voted"]) == 0
        model = tmp_path / "voted" / file
    shutil.copytree(documents / "test", root / "test")
    (root / "meta.csv").write_text("target,class_name\n0,book\n1,will\n")
    (root / "test" / "t0.jpg").write_bytes(b"no image")
    assert main(["predict", "--checkpoint", str(model), "--data", str(root), "--output", "out"]) != 0
    assert "has other classes than the model: 0 book, 1 will (2)" in capsys.readouterr().out


def test_prediction_repeats_the_validation_of_the_training(
    trained: list[Path], tmp_path: Path, documents: Path
) -> None:
    """The validation images put in the place of the test images get the probabilities that training stored."""
    member = checkpoint.load(trained[0] / "best.ckpt")
    root = tmp_path / "again"
    (root / "test").mkdir(parents=True)
    for image_id in member.validation["ids"]:
        (root / "test" / image_id).write_bytes((documents / "train" / image_id).read_bytes())
    (root / "sample_submission.csv").write_text("ID\n" + "\n".join(member.validation["ids"]))
    words = [f"checkpoint={trained[0] / 'best.ckpt'}", f"data.root={root}", f"output={tmp_path / 'out'}"]
    assert main(["predict", *words, "batch_size=3", "num_workers=2"]) == 0
    again = stored(tmp_path / "out" / "predictions.npz")["probabilities"]
    expected = calibration.temper(member.validation["probabilities"].numpy(), member.temperature)
    np.testing.assert_allclose(again, expected, atol=0.03)  # bf16, other batches
    np.testing.assert_array_equal(again.argmax(1), expected.argmax(1))


@pytest.mark.parametrize("command", ["predict --checkpoint", "analyze --checkpoint", "ensemble --checkpoints"])
def test_a_folder_with_a_sign_of_equality_in_its_name_is_a_folder(
    trained: list[Path], documents: Path, tmp_path: Path, command: str
) -> None:
    (tmp_path / "day=1").symlink_to(documents)
    words = [*command.split(), str(trained[0] / "best.ckpt"), "--data", "day=1", "--output", "out=1"]
    assert main(words) == 0 and any((tmp_path / "out=1").iterdir())


def test_predict_needs_nothing_but_the_checkpoint(trained: list[Path], tmp_path: Path) -> None:
    alone = tmp_path / "alone" / "copy.ckpt"
    alone.parent.mkdir()
    alone.write_bytes((trained[0] / "best.ckpt").read_bytes())
    assert main(["predict", "--checkpoint", str(alone), "--output", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("method", ensemble_file.METHODS)
def test_the_manuals_ensemble_command(trained: list[Path], tmp_path: Path, method: str) -> None:
    """Two architectures of 64 and 160 pixels."""
    members = [str(run / "best.ckpt") for run in trained]
    assert main(["ensemble", "--checkpoints", *members, "--method", method]) == 0
    summary = json.loads((tmp_path / "metrics.json").read_text())
    validation = stored(tmp_path / "val_predictions.npz")
    predicted = validation["probabilities"].argmax(1)
    assert summary["val_f1"] == pytest.approx(f1_score(validation["targets"], predicted, average="macro"), abs=1e-5)
    assert len(rows(tmp_path / "submission.csv")) == 6
    assert main(["predict", "checkpoint=ensemble.json", "output=again"]) == 0
    assert (tmp_path / "again" / "submission.csv").read_bytes() == (tmp_path / "submission.csv").read_bytes()
    (tmp_path / "predictions.npz").unlink()
    assert main(["predict", "checkpoint=ensemble.json", "output=anew"]) == 0
    assert (tmp_path / "anew" / "submission.csv").read_bytes() == (tmp_path / "submission.csv").read_bytes()


def test_soft_voting_is_the_weighted_mean() -> None:
    a, b = torch.tensor([[0.8, 0.2]]), torch.tensor([[0.1, 0.9]])
    assert voting.combine("soft_voting", [a, b], [1, 1])[0].tolist() == pytest.approx([0.45, 0.55])
    assert voting.combine("soft_voting", [a, b], [3, 1])[0].tolist() == pytest.approx([0.625, 0.375])


def test_hard_voting_counts_votes_and_breaks_ties_by_probability() -> None:
    a, b, c = torch.tensor([[0.6, 0.4]]), torch.tensor([[0.55, 0.45]]), torch.tensor([[0.01, 0.99]])
    assert voting.combine("hard_voting", [a, b, c], [1, 1, 1]).argmax(1).item() == 0
    assert voting.combine("hard_voting", [a, c], [1, 1]).argmax(1).item() == 1
    assert voting.combine("hard_voting", [a, b, c], [1, 1, 5]).argmax(1).item() == 1


def test_rank_averaging_ignores_how_sure_a_member_is() -> None:
    """The same ranks against validation images of which the member is as sure."""
    generator = torch.Generator().manual_seed(0)
    logits, held_out = torch.randn(30, 2, generator=generator), torch.randn(200, 2, generator=generator)
    other, others = torch.randn(30, 2, generator=generator).softmax(1), torch.rand(400, generator=generator)
    calm, sure = logits.softmax(1), (logits * 3).softmax(1)
    a = voting.combine("rank_averaging", [calm, other], [1, 1], [held_out.softmax(1), others])
    b = voting.combine("rank_averaging", [sure, other], [1, 1], [(held_out * 3).softmax(1), others])
    torch.testing.assert_close(a, b, atol=0.01, rtol=0)
    torch.testing.assert_close(a.sum(1), torch.ones(30))


@pytest.mark.parametrize("priors", [(1 / 3, 1 / 3, 1 / 3), (0.9, 0.07, 0.03)])
@pytest.mark.parametrize("method", ["soft_voting", "hard_voting", "rank_averaging"])
def test_perfect_members_stay_perfect_whatever_the_share_of_the_classes(method: str, priors: tuple[float, ...]) -> None:
    chance = np.random.default_rng(0)

    def predicted(targets: np.ndarray) -> torch.Tensor:
        noise = chance.dirichlet([1.0, 1.0, 1.0], len(targets))
        return torch.from_numpy(0.6 * np.eye(3)[targets] + 0.4 * noise).float()

    held_out, test = (chance.choice(3, 1000, p=priors) for _ in range(2))
    references = [predicted(held_out) for _ in range(2)]
    members = [predicted(test) for _ in range(2)]
    voted = voting.combine(method, members, [1, 1], references)
    assert (voted.argmax(1).numpy() == test).all()
    for row in range(5):  # one image alone has the votes that it has among others
        alone = voting.combine(method, [member[row : row + 1] for member in members], [1, 1], references)
        torch.testing.assert_close(alone[0], voted[row])


def test_a_rank_grows_with_its_probability() -> None:
    reference = torch.tensor([0.0, 0.0, 0.2, 0.2, 0.2, 0.9, 1.0])
    ranks = voting.ranks(torch.tensor([0.0, 0.1, 0.2, 0.3, 0.89, 0.95, 1.0]), reference)
    assert (ranks.diff() > 0).all() and ranks[0] >= 0 and ranks[-1] <= 1
    assert ranks[2].item() == pytest.approx((2 + 3 / 2) / 7)


def test_rank_averaging_needs_validation_predictions(
    trained: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = altered(trained[0] / "best.ckpt", tmp_path / "bare.ckpt", validation={})
    assert main(["ensemble", "--checkpoints", str(bare), str(bare), "--method", "rank_averaging"]) == 64
    assert "no validation predictions to rank against; use --method soft_voting" in capsys.readouterr().err
    assert (
        main(["ensemble", "--checkpoints", *(str(run / "best.ckpt") for run in trained), "--method", "rank_averaging"])
        == 0
    )
    content = json.loads(Path("ensemble.json").read_text())
    Path("ensemble.json").write_text(json.dumps(content | {"format": 2}))
    assert main(["predict", "checkpoint=ensemble.json", "output=x"]) == 64
    assert "run the ensemble command again, or use --method soft_voting" in capsys.readouterr().err


def test_figures_are_said_to_be_without_the_views(
    trained: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = [str(run / "best.ckpt") for run in trained]
    assert main(["ensemble", "--checkpoints", *best, "--tta", "light"]) == 0
    assert "note: the validation figures and the temperature are without --tta light" in capsys.readouterr().out
    content = json.loads(Path("metrics.json").read_text())
    assert (content["tta"], content["val_tta"]) == ("light", "none")
    assert main(["analyze", "--checkpoint", "ensemble.json"]) == 0
    assert "Predictions with --tta light were not measured" in Path("analysis_results/report.html").read_text()
    capsys.readouterr()
    assert main(["ensemble", "--checkpoints", *best, "--output", "plain"]) == 0
    assert "without --tta" not in capsys.readouterr().out


def test_members_may_have_their_classes_in_another_order(trained: list[Path], tmp_path: Path) -> None:
    member = checkpoint.load(trained[0] / "best.ckpt")
    order = [2, 0, 1]
    state = dict(member.state_dict)
    for key in ("fc.weight", "fc.bias"):
        state[key] = state[key][order]
    validation = {
        **member.validation,
        "targets": torch.tensor([order.index(t) for t in member.validation["targets"].tolist()]),
        **{key: member.validation[key][:, order] for key in ("probabilities", "corrupted")},
    }
    turned = altered(
        trained[0] / "best.ckpt",
        tmp_path / "turned.ckpt",
        state_dict=state,
        class_names=[member.class_names[i] for i in order],
        labels=[member.labels[i] for i in order],
        validation=validation,
    )
    for name, members in (("same", [trained[0] / "best.ckpt"] * 2), ("mixed", [trained[0] / "best.ckpt", turned])):
        words = ["--checkpoints", *map(str, members), "--output", str(tmp_path / name)]
        assert main(["ensemble", *words]) == 0
    a, b = (stored(tmp_path / name / "predictions.npz")["probabilities"] for name in ("same", "mixed"))
    np.testing.assert_allclose(a, b, atol=1e-5)
    a, b = (stored(tmp_path / name / "val_predictions.npz")["probabilities"] for name in ("same", "mixed"))
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_members_of_other_classes_are_refused(
    trained: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = altered(trained[0] / "best.ckpt", tmp_path / "odd.ckpt", class_names=["stripes", "boxes", "dots"])
    assert main(["ensemble", "--checkpoints", str(trained[0] / "best.ckpt"), str(odd)]) == 64
    assert "in discs, dots" in capsys.readouterr().err
    assert not (tmp_path / "ensemble.json").exists()


def test_members_of_different_splits_get_no_validation_figure(
    trained: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUN_DIR", str(tmp_path / "other"))
    assert main(["train", *TINY, "data.split_seed=9", "training.max_steps=1"]) == 0
    monkeypatch.delenv("RUN_DIR")
    members = [str(trained[0] / "best.ckpt"), str(tmp_path / "other" / "best.ckpt")]
    assert main(["ensemble", "--checkpoints", *members]) == 0
    summary = json.loads((tmp_path / "metrics.json").read_text())
    assert summary["val_f1"] is None and "different splits" in summary["why_no_val"]


def test_an_ensemble_whose_member_changed_is_refused(
    trained: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    member = tmp_path / "m.ckpt"
    member.write_bytes((trained[0] / "best.ckpt").read_bytes())
    assert main(["ensemble", "--checkpoints", str(member)]) == 0
    altered(member, member, metrics={})
    assert main(["predict", "checkpoint=ensemble.json"]) == 64
    assert "changed after ensemble.json was written" in capsys.readouterr().err


def test_without_test_images_an_ensemble_still_has_its_validation(trained: list[Path], tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    assert main(["ensemble", "--checkpoints", str(trained[0] / "best.ckpt"), f"data.root={root}"]) == 0
    assert (tmp_path / "ensemble.json").exists() and not (tmp_path / "submission.csv").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["predict", "checkpoint=none.ckpt"], 64, "none.ckpt: checkpoint not found"),
        (["predict"], 64, "--checkpoint"),
        (["predict", "checkpint=x"], 64, "did you mean '--checkpoint'?"),
        (["predict", "--model", "x"], 64, "--model: unknown option; valid: --batch_size, --checkpoint"),
        (["predict", "model=x"], 64, "unknown option 'model'; valid: --batch_size, --checkpoint"),
        (["predict", "--hlep"], 64, "did you mean '--help'?"),
        (["predict", "checkpoint={first}", "data.root=nowhere"], 65, "nowhere"),
        (["predict", "checkpoint={first}", "batch_size=0"], 64, "not a whole number above 0"),
        (["predict", "checkpoint={last}"], 64, "last.ckpt is only for resume; give best.ckpt"),
        (["predict", "checkpoint={csv}"], 64, "not a checkpoint, or damaged; give a best.ckpt"),
        (["ensemble", "--checkpoints", "{first}", "--method", "soft_votin"], 64, "did you mean 'soft_voting'?"),
        (["ensemble", "--checkpoints", "{first}", "--weights", "1", "2"], 64, "2 weights for 1 member"),
        (["ensemble", "--checkpoints", "{first}", "--weights", "-1"], 64, "weights must not be negative"),
        (["ensemble", "--checkpoints"], 64, "expected at least one argument"),
    ],
)
def test_a_wrong_call_is_one_clear_error(
    trained: list[Path],
    documents: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    said: str,
) -> None:
    places = {"first": trained[0] / "best.ckpt", "last": trained[0] / "last.ckpt", "csv": documents / "train.csv"}
    assert main([word.format(**places) for word in words]) == code
    message = capsys.readouterr().err
    assert said in message and "Traceback" not in message
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_unreadable_test_images_are_all_named(
    trained: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_documents(tmp_path / "data")
    for name in ("t1.jpg", "t4.jpg"):
        (root / "test" / name).write_bytes(b"broken")
    assert main(["predict", f"checkpoint={trained[0] / 'best.ckpt'}", f"data.root={root}"]) == 65
    message = capsys.readouterr().err
    assert "test/t1.jpg" in message and "test/t4.jpg" in message


def test_of_one_image_the_class_is_said_in_words(
    trained: list[Path], documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = documents / "test" / "t0.jpg"
    assert main(["predict", "--checkpoint", str(trained[0] / "best.ckpt"), "--data", str(image)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    with np.load("predictions.npz") as stored:
        chances, names = stored["probabilities"][0], stored["class_names"].tolist()
    first, second = np.argsort(-chances, kind="stable")[:2]
    words = [f"{names[c]} (label {c}) {chances[c]:.1%}" for c in (first, second)]
    assert last == f"t0.jpg: {words[0]}, then {words[1]}"
