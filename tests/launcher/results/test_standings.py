"""What is best, and what only looks so: scores, the paired comparison, folds joined into one row."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import f1_score

from launcher.base.errors import JobError, RunError
from launcher.host.machine import BUILT_IN
from launcher.job import expansion, spec, steps
from launcher.record import predictions
from launcher.record.request import RunRequest, write_request
from launcher.results import collect, leaderboard
from tests.launcher.boards import add_run, images, predicted, scored_folds, scored_run, truth, write_predictions
from tests.launcher.conftest import Lab
from trainer.base.files import write_json
from trainer.base.names import GROUPED

SERVER = BUILT_IN["cuda-server"]


def shown(rows: list[collect.Row]) -> str:
    console = Console(width=220, highlight=False, markup=False)
    with console.capture() as capture:
        console.print(leaderboard.render(rows))
    return capture.get()


def told_apart(rows: list[collect.Row]) -> dict[str, str]:
    return {row["run"]: row["distinguishable"] for row in rows}


def champion(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "champion" / "champion_info.json").read_text())
    return found


def test_the_score_ranks_and_what_chance_could_have_made_is_marked(tmp_path: Path) -> None:
    scored_run(tmp_path / "one", "001-a", wrong=3, worse=10)
    scored_run(tmp_path / "one", "002-b", wrong=2, worse=12, offset=9)
    scored_run(tmp_path / "one", "003-c", wrong=0, worse=40)  # the best clean F1, and useless on photographs
    rows, _ = collect.collect(tmp_path / "one")
    assert [row["run"] for row in rows] == ["001-a", "002-b", "003-c"]
    assert told_apart(rows) == {"001-a": "no", "002-b": "no", "003-c": "yes"}
    assert {row["monitor"] for row in rows} == {"val_f1_mean"}
    assert rows[0]["score"] == pytest.approx((rows[0]["val_f1"] + rows[0]["val_f1_corrupted"]) / 2, abs=1e-6)
    assert rows[0]["val_f1_low"] < rows[0]["val_f1"] < rows[0]["val_f1_high"]
    text = shown(rows)
    assert "≈ the first 2 are not distinguishable on these 60 validation images" in text
    assert "1.0000 [no mistake]" in text and "none of 60 images is wrong; up to 5.0 % of new images" in text
    assert text.count("≈") == 3 and "score: the mean of val F1 and corrupted F1" in text
    (best, *_) = csv.DictReader((tmp_path / "one" / "leaderboard.csv").read_text().splitlines())
    assert best["distinguishable"] == "no" and float(best["score"]) == rows[0]["score"]
    assert champion(tmp_path)["run"] == "one/001-a" and champion(tmp_path)["monitor"] == "val_f1_mean"


def test_what_saw_other_images_or_left_no_predictions_is_not_compared(tmp_path: Path) -> None:
    scored_run(tmp_path, "001-a", wrong=3)
    scored_run(tmp_path, "002-split", wrong=4, split="t")
    scored_run(tmp_path, "003-images", wrong=4, ids=images(start=1))
    (scored_run(tmp_path, "004-damaged", wrong=4) / "val_predictions.npz").write_bytes(b"PK\x03\x04 cut short")
    rows = collect.leaderboard_rows(tmp_path)
    assert told_apart(rows) == {"001-a": "no", "002-split": "", "003-images": "", "004-damaged": ""}
    assert "not compared, without predictions for the same images: 3" in shown(rows)


def test_predictions_whose_bytes_were_damaged_are_none(tmp_path: Path) -> None:
    scored_run(tmp_path, "001-a", wrong=3)
    path = scored_run(tmp_path, "002-damaged", wrong=4) / "val_predictions.npz"
    whole = path.read_bytes()
    chance = np.random.default_rng(0)
    unread = 0
    for _ in range(200):
        content = np.frombuffer(whole, np.uint8).copy()
        content[chance.integers(len(content), size=4)] ^= chance.integers(1, 256, 4, np.uint8)
        path.write_bytes(content.tobytes())
        unread += predictions.load(path.parent) is None
    assert unread > 100
    path.write_bytes(whole[:60] + b"\xff" * 20 + whole[80:])  # in the middle of a compressed member: zlib.error
    assert told_apart(collect.leaderboard_rows(tmp_path)) == {"001-a": "no", "002-damaged": ""}


def test_classes_and_images_in_another_order_are_the_same(tmp_path: Path) -> None:
    scored_run(tmp_path, "001-a", wrong=3)
    other = scored_run(tmp_path, "002-b", wrong=3)
    with np.load(other / "val_predictions.npz") as content:
        kept = dict(content)
    kept |= {key: kept[key][::-1] for key in ("ids", "class_names")}
    kept["targets"] = 2 - kept["targets"][::-1]
    kept["probabilities"] = kept["probabilities"][::-1, ::-1]
    np.savez(other / "val_predictions.npz", **kept)
    assert told_apart(collect.leaderboard_rows(tmp_path)) == {"001-a": "no", "002-b": "no"}


def test_runs_that_monitored_different_figures_are_ranked_by_one_that_all_have(tmp_path: Path) -> None:
    scored_run(tmp_path, "001-a", wrong=1, worse=30, monitor="val_f1")
    scored_run(tmp_path, "002-b", wrong=2, worse=4)
    rows = collect.leaderboard_rows(tmp_path)
    assert [(row["run"], row["monitor"]) for row in rows] == [("002-b", "val_f1_mean"), ("001-a", "val_f1_mean")]
    scored_run(tmp_path, "003-clean", wrong=0)  # has no corrupted copies
    assert [row["run"] for row in collect.leaderboard_rows(tmp_path)] == ["003-clean", "001-a", "002-b"]


def test_the_champion_is_compared_by_the_figure_that_both_have(tmp_path: Path) -> None:
    collect.collect(scored_run(tmp_path / "one", "001-a", wrong=2, worse=20).parent)
    _, line = collect.collect(scored_run(tmp_path / "two", "001-a", wrong=4, worse=10).parent)
    assert champion(tmp_path)["run"] == "two/001-a" and "(val_f1_mean 0." in line
    _, line = collect.collect(scored_run(tmp_path / "three", "001-a", wrong=3).parent)  # no corrupted copies
    assert champion(tmp_path)["run"] == "three/001-a" and "(val_f1 0.9" in line


def test_the_champion_has_the_history_origin_and_data_folder_of_its_run(tmp_path: Path) -> None:
    for name, wrong, history in (("one", 6, True), ("two", 4, False), ("three", 2, True)):
        data = tmp_path / "pages"
        run_dir = scored_run(tmp_path / name, "001-resnet10t", wrong=wrong, data_dir=str(data))
        figures = json.loads((run_dir / "metrics.json").read_text())
        more = {"model": "resnet10t", "model_name": "resnet10t", "git_sha": name, "data_fingerprint": "f"}
        write_json(run_dir / "metrics.json", figures | more)
        if history:
            (run_dir / "history.csv").write_text(f"epoch,step\n1,{wrong}\n")
        collect.collect(tmp_path / name)
        found = champion(tmp_path)
        assert (found["run"], found["model"], found["git_sha"]) == (f"{name}/001-resnet10t", "resnet10t", name)
        assert found["data_fingerprint"] == "f" and found["data_folder"] == str(data)
        kept = tmp_path / "champion" / "history.csv"
        assert (kept.read_text() if kept.is_symlink() else None) == (f"epoch,step\n1,{wrong}\n" if history else None)
    assert (tmp_path / "champion" / "history.csv").resolve().parent.name.startswith("model-")


def test_with_groups_the_leaderboard_says_that_it_is_too_certain(tmp_path: Path) -> None:
    for wrong, name in ((1, "001-a"), (30, "002-b")):
        scored_run(tmp_path / "one", name, wrong=wrong)
    assert "too certain" not in shown(collect.leaderboard_rows(tmp_path / "one"))
    for name in ("001-a", "002-b"):
        file = tmp_path / "one" / name / "metrics.json"
        write_json(file, json.loads(file.read_text()) | {"groups": "patient"})
    rows = collect.leaderboard_rows(tmp_path / "one")
    assert rows[0]["groups"] == "patient"
    text = " ".join(shown(rows).split())
    assert "the first is significantly better than the others" in text
    assert f"intervals are too narrow and differences too certain: {GROUPED}" in text
    scored_folds(tmp_path / "two", "a", 1, [1, 2])
    for file in (tmp_path / "two").glob("*/metrics.json"):
        write_json(file, json.loads(file.read_text()) | {"groups": "patient"})
    assert "too certain" in shown(collect.leaderboard_rows(tmp_path / "two"))


def test_the_folds_of_a_configuration_are_one_row_of_their_pooled_predictions(tmp_path: Path) -> None:
    submission = tmp_path / "one"
    scored_folds(submission, "a", 1, [1, 2, 3])
    scored_folds(submission, "b", 4, [0, 8, 8])
    vote = add_run(submission, "007-vote", kind="ensemble")
    ids = images(60)
    voted = write_predictions(vote, ids, predicted(ids, 5), predicted(ids, 6), split="joined", folds="f")
    members = [
        {"checkpoint": f"../{1 + place:03d}-{'ab'[place // 3]}-fold{place % 3}/best.ckpt", "member": place // 3}
        for place in range(6)
    ]
    write_json(vote / "metrics.json", {**voted, "method": "soft_voting", "members": members})
    rows, line = collect.collect(submission)
    ranked = [(row["rank"], row["run"], row["kind"]) for row in rows if row["rank"] != ""]
    assert ranked == [(1, "007-vote", "ensemble"), (2, "a-folds", "folds"), (3, "b-folds", "folds")]
    assert [row["run"] for row in rows[1:5]] == ["a-folds", "001-a-fold0", "002-a-fold1", "003-a-fold2"]
    joined = rows[1]
    ids = [image for fold in range(3) for image in images(20, 20 * fold)]
    said = np.concatenate([predicted(images(20, 20 * fold), fold + 1).argmax(1) for fold in range(3)])
    assert joined["val_f1"] == pytest.approx(f1_score(truth(ids), said, average="macro"), abs=1e-6)
    assert (joined["val_images"], joined["fold"], joined["state"]) == (60, "", "succeeded")
    assert joined["members"] == "001-a-fold0 002-a-fold1 003-a-fold2" and joined["val_f1_low"] < joined["val_f1"]
    assert told_apart([row for row in rows if row["rank"]]) == {"007-vote": "no", "a-folds": "no", "b-folds": "yes"}
    assert "soft_voting of 2 (6 checkpoints)" in shown(rows) and (rows[0]["voters"], joined["voters"]) == (2, "")
    assert "a-folds" in shown(rows) and "001-a-fold0" not in shown(rows)
    assert line.startswith("a fold cannot become the champion") and "add a step" not in line, "there is one"
    assert "validation images; predict with one/007-vote/ensemble.json" in line
    assert not (tmp_path / "champion").exists()


def test_a_fold_that_was_trained_alone_is_no_champion_either(tmp_path: Path) -> None:
    fold = {"configuration": "a", "config": {"fold": 0, "folds": 5}}
    scored_run(tmp_path / "one", "001-a", wrong=0, **fold)
    rows, line = collect.collect(tmp_path / "one")
    assert rows[0]["rank"] == 1 and line.startswith("a fold cannot become the champion") and "step: ensemble" in line
    assert not (tmp_path / "champion").exists()
    scored_run(tmp_path / "one", "002-b", wrong=4)
    collect.collect(tmp_path / "one")
    assert champion(tmp_path)["run"] == "one/002-b"


def test_a_configuration_that_lacks_a_fold_says_which_and_has_no_rank(tmp_path: Path) -> None:
    scored_folds(tmp_path, "a", 1, [1, None, 3])  # type: ignore[list-item]
    scored_folds(tmp_path, "b", 4, [5, 5, 5])
    rows = collect.leaderboard_rows(tmp_path)
    assert [(row["rank"], row["run"]) for row in rows if row["kind"] == "folds"] == [(1, "b-folds"), ("", "a-folds")]
    assert rows[4]["reason"] == "incomplete: fold 1 failed" and rows[4]["state"] == "failed"
    assert "  002-a-fold1" in shown(rows) and "004-b-fold0" not in shown(rows)


def test_top_counts_configurations_and_takes_all_their_folds(tmp_path: Path) -> None:
    scored_folds(tmp_path, "a", 1, [6, 6, 0])  # its last fold is the best single run
    scored_folds(tmp_path, "b", 4, [2, 2, 2])
    scored_folds(tmp_path, "c", 7, [0, None, 0])  # type: ignore[list-item]
    names = [path.name for path in steps.selected_runs({"top": 1}, tmp_path)]
    assert names == ["004-b-fold0", "005-b-fold1", "006-b-fold2"]
    assert len(steps.selected_runs({"top": 9}, tmp_path)) == 6
    assert [path.name for path in steps.selected_runs({"runs": ["c-fold2"]}, tmp_path)] == ["009-c-fold2"]
    one = RunRequest("010-p", 10, "predict", [], select={"top": 1})
    with pytest.raises(RunError, match="010-p: the best configuration has several folds, each with its own model"):
        steps.with_members(one, tmp_path)
    assert len(steps.with_members(dataclasses.replace(one, kind="ensemble"), tmp_path).command) == 5


def planned(tmp_path: Path, text: str, *words: str) -> list[RunRequest]:
    (tmp_path / "job.yaml").write_text(text)
    return [each.request for each in expansion.expand(spec.load(tmp_path / "job.yaml", words), SERVER)]


CHECKPOINT = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
"""How torch.save began once."""
ALL = "matrix: {model: [resnet34, resnet50], data.fold: all}\noverrides: {data.folds: 3, training.lr: 0.001}\n"


def test_all_folds_are_an_axis_and_the_command_line_changes_their_number(tmp_path: Path) -> None:
    made = planned(tmp_path, ALL)
    assert [each.name for each in made[:4]] == [
        "001-resnet34-fold0", "002-resnet34-fold1", "003-resnet34-fold2", "004-resnet50-fold0",
    ]  # fmt: skip
    assert [len({getattr(each, what) for each in made}) for what in ("identity", "configuration")] == [6, 2]
    assert [each.config["fold"] for each in planned(tmp_path, ALL, "data.folds=2")] == [0, 1, 0, 1]
    words = ["model.weights=a,b", "data.folds=2", "data.fold=all"]  # weights are no part of a run's identity
    assert len({each.request.configuration for each in expansion.expand(spec.from_overrides(words), SERVER)}) == 2
    words = ["model=resnet34", "data.folds=4", "data.fold=all"]
    assert len(expansion.expand(spec.from_overrides(words), SERVER)) == 4
    assert planned(tmp_path, "overrides: {model: resnet34}\n")[0].configuration == ""


def test_students_whose_teachers_are_the_same_folds_are_one_configuration(tmp_path: Path) -> None:
    """Each fold's teacher is another file. A teacher of another fold has seen what its student holds out."""
    for request in planned(tmp_path, "matrix: {data.fold: all}\noverrides: {data.folds: 2}\n"):
        folder = tmp_path / "runs" / "teachers" / request.name
        folder.mkdir(parents=True)
        (folder.parent / ".state" / request.name).mkdir(parents=True)
        write_request(folder, request)
        (folder / "best.ckpt").write_bytes(CHECKPOINT)
    first, second = sorted((tmp_path / "runs" / "teachers").glob("0*"))

    def configurations(*teachers: Path) -> int:
        entries = [
            f"  - {{data.fold: {fold}, training.teachers: ['{teacher}/best.ckpt']}}\n"
            for fold, teacher in enumerate(teachers)
        ]
        made = planned(tmp_path, "overrides: {data.folds: 2, model: resnet34}\ninclude:\n" + "".join(entries))
        assert [each.config["fold"] for each in made] == [0, 1]
        return len({each.configuration for each in made})

    assert configurations(first, second) == 1, "unlike files of one teacher's folds"
    assert configurations(second, first) == 2, "each has seen the images that its student holds out"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "best.ckpt").write_bytes(CHECKPOINT)
    assert configurations(first, tmp_path / "other") == 2, "its origin is unknown"
    assert configurations(tmp_path / "other", tmp_path / "other") == 1, "one teacher for all"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("matrix: {data.fold: all}\n", "job.yaml:1: data.fold: all: how many? write overrides: {data.folds: 5}"),
        (ALL + "after: [{name: p, step: predict, from: {top: 1}}]\n", "job.yaml:3: after.0.from.top: the best"),
        (ALL + "after: [{name: v, step: ensemble, from: {top: 1}, args: {weights: gredy}}]\n", "did you mean 'greedy'?, or one number per member"),
        (ALL + "after: [{name: v, step: ensemble, from: {top: 1}, args: {weights: [1, -2]}}]\n", "[1, -2] is not allowed"),
        (ALL + "after: [{name: v, step: ensemble, from: {top: 1}, args: {tta: full}}]\n", "'full' is not allowed"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_of_folds_and_steps_is_told_before_anything_trains(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(JobError) as told:
        planned(tmp_path, text)
    assert message in str(told.value)


@pytest.mark.parametrize(
    ("weights", "words"), [("greedy", ["greedy"]), ("optimised", ["optimised"]), ("[2, 0.5]", ["2", "0.5"])]
)
def test_options_of_steps_reach_the_trainer(tmp_path: Path, weights: str, words: list[str]) -> None:
    step = f"after: [{{name: v, step: ensemble, from: {{top: 2}}, args: {{weights: {weights}, tta: standard}}}}]\n"
    assert planned(tmp_path, ALL + step)[-1].command == ["--weights", *words, "--tta", "standard"]


def test_the_projects_folds_run_from_the_matrix_to_the_report(lab: Lab) -> None:
    lab.plan = {"resnet50-fold1": {"exit": 1}}
    (lab.root / "folds.yaml").write_bytes((Path(__file__).parents[3] / "jobs" / "folds.yaml").read_bytes())
    done = lab.launcher("submit", "folds.yaml", "--engine=native", lab.machine(), "data.folds=2")
    assert done.returncode == 1, done.stderr
    assert lab.states()["resnet50-fold1"] == "failed" and lab.states()["report"] == "succeeded"
    (asked,) = [event["argv"] for event in lab.journal("begin") if event["run"].endswith("vote")]
    assert asked[0] == "ensemble" and asked[-2:] == ["--weights", "greedy"]
    assert [Path(word).parent.name for word in asked if word.endswith("best.ckpt")] == [
        "001-resnet34-fold0", "002-resnet34-fold1",
    ]  # fmt: skip
    assert "resnet50-folds" in done.stdout and "incomplete: fold 1 failed" in done.stdout
