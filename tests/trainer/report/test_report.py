"""report.html: opened in a real browser, and its figures are the run's own."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests import browser
from trainer.augment.corruption import Corruption
from trainer.cli.main import main
from trainer.data.table import read_training
from trainer.models import checkpoint
from trainer.report import report, subject
from trainer.scores import val_predictions

HOSTILE = "<script>document.title='taken'</script>"
HOSTILE_ID = '"><img src=x onerror="document.title=\'taken\'">.jpg'

PROBE = """
<script>
  function probe(frame) {
    const page = frame.contentDocument, root = page.documentElement;
    const outside = [...page.querySelectorAll('main *')].filter(
      e => !e.closest('.scroll') && e.getBoundingClientRect().right > root.clientWidth + 1);
    return {
      width: root.clientWidth, scrolled: root.scrollWidth, outside: outside.map(e => e.outerHTML.slice(0, 200)),
      images: [...page.images].map(image => image.naturalWidth), title: page.title, text: page.body.innerText,
      addresses: ['src', 'href', 'srcset', 'action', 'data', 'xlink:href'].flatMap(
        name => [...page.querySelectorAll('*')].map(e => e.getAttribute(name)).filter(Boolean)),
      scripts: page.scripts.length, lines: page.querySelectorAll('#training polyline').length,
      classes: page.querySelectorAll('#classes tbody tr').length,
      cells: page.querySelectorAll('#confusion tbody td').length,
      kinds: page.querySelectorAll('#corruption tbody tr').length,
      diagrams: page.querySelectorAll('#calibration svg').length,
      font: getComputedStyle(page.body).fontVariantNumeric,
    };
  }
  onload = () => {
    const found = [...document.querySelectorAll('iframe')].map(probe);
    document.body.textContent = JSON.stringify(found);
  };
</script>"""


@pytest.fixture
def run(trained: list[Path], documents: Path, tmp_path: Path) -> Path:
    """A run directory whose classes and images have names that a page must not take for its own, and whose model is
    wrong about a third of the clean and half of the corrupted copies."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    shutil.copy(trained[0] / "history.csv", run_dir)
    made = checkpoint.load(trained[0] / "best.ckpt")
    held = made.validation
    ids, targets = list(held["ids"]), held["targets"]
    root = tmp_path / "data"
    (root / "train").mkdir(parents=True)
    for old, new in zip(ids, [HOSTILE_ID, *ids[1:]], strict=True):
        shutil.copy(documents / "train" / old, root / "train" / new)
    ids[0] = HOSTILE_ID
    guesses = {key: targets.clone() for key in ("probabilities", "corrupted")}
    guesses["probabilities"][::3] = (targets[::3] + 1) % 3
    guesses["corrupted"][::2] = (targets[::2] + 1) % 3
    chances = {key: torch.full((len(ids), 3), 0.05).scatter(1, own[:, None], 0.9) for key, own in guesses.items()}
    names = [HOSTILE, "a_class_with_a_name_that_is_long_enough_for_two_lines", "$x$"]
    validation = {**held, "ids": ids, **chances}
    checkpoint.save(run_dir / "best.ckpt", replace(made, class_names=names, validation=validation))
    return run_dir


def test_a_browser_shows_it_whole_on_a_phone_and_on_a_desk(run: Path, tmp_path: Path) -> None:
    if browser.executable() is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    assert main(["analyze", "--checkpoint", str(run / "best.ckpt"), f"data.root={tmp_path / 'data'}"]) == 0
    page = tmp_path / "analysis_results" / "report.html"
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"@import|url\(|https?://", text)

    picture = tmp_path / "page.png"
    shown = browser.show(page, tmp_path / "profile", f"--screenshot={picture}", "--window-size=1280,1000")
    assert shown.console == []
    with Image.open(picture) as opened:
        assert opened.size == (1280, 1000) and len(opened.convert("L").getcolors() or range(300)) > 50

    # A window is no narrower than 500 pixels, a frame may be. Without its policy, which forbids every script, so that
    # names alone have to hold back theirs.
    free = re.sub(r"<meta http-equiv=.Content-Security-Policy.[^>]*>", "", text)
    assert free != text
    frames = "".join(
        f'<iframe srcdoc="{html.escape(free)}" style="width:{width}px;height:900px;border:0"></iframe>'
        for width in (1280, 390)
    )
    host = tmp_path / "host.html"
    host.write_text(f'<!doctype html><html><head><meta charset="utf-8">{PROBE}</head><body>{frames}</body></html>')
    shown = browser.show(host, tmp_path / "profile", "--dump-dom")
    assert shown.console == []
    found = json.loads(html.unescape(re.search(r"<body>(.*)</body>", shown.dom, re.S)[1]))  # type: ignore[index]
    assert [frame["width"] for frame in found] == [1280, 390]
    validation = val_predictions.read(run / "best.ckpt")
    wrong = [int((p.argmax(1) != validation.targets).sum()) for p in validation.copies.values()]
    suspected = report.content(subject.read(run / "best.ckpt"), None)["suspected"]
    for frame in found:
        assert frame["scrolled"] == frame["width"] and frame["outside"] == []
        assert frame["title"].startswith("test_resnet: macro F1") and frame["scripts"] == 0
        assert all(address.startswith(("#", "data:image/jpeg;")) for address in frame["addresses"])
        assert len(frame["images"]) == sum(wrong) + suspected and min(frame["images"]) > 0
        assert (frame["lines"], frame["classes"], frame["cells"], frame["diagrams"]) == (4, 3, 2 * 9, 2)
        assert frame["kinds"] > 3 and frame["font"] == "tabular-nums"
        for words in (
            HOSTILE,
            HOSTILE_ID,
            "Macro F1, corrupted",
            "Both values are a little too high",
            "split fingerprint",
        ):
            assert words in frame["text"]


def test_its_figures_are_those_of_the_run(trained: list[Path]) -> None:
    metrics = json.loads((trained[0] / "metrics.json").read_text())
    shown = report.content(subject.read(trained[0] / "best.ckpt"), None)
    clean, corrupted, mean = shown["headline"]
    for score, name in ((clean, "val_f1"), (corrupted, "val_f1_corrupted")):
        assert score.f1 == pytest.approx(metrics[name], abs=1e-5)
        assert (score.interval and list(score.interval)) == metrics[f"{name}_interval"]
    assert mean.f1 == pytest.approx(metrics["val_f1_mean"], abs=1e-5)
    assert mean.interval is None or mean.interval[0] <= mean.f1 <= mean.interval[1]
    assert [diagram.error for diagram in shown["diagrams"]] == pytest.approx(
        [metrics["ece"], metrics["ece_calibrated"]], abs=1e-5
    )
    assert sum(row.images for row in shown["classes"]) == shown["images"]
    assert shown["curves"][1].mark is not None, "the chosen validation is in the history"


def test_the_kinds_and_the_corrupted_pictures_are_those_that_were_scored(trained: list[Path], documents: Path) -> None:
    analysed = subject.read(trained[0] / "best.ckpt")
    validation, config = analysed.validation, checkpoint.load(trained[0] / "best.ckpt").settings.data
    table = read_training(documents, config)
    path = table.paths[table.ids.index(validation.ids[0])]
    corruption = Corruption(config.split_seed)
    kinds = report.kinds_of(analysed)
    assert kinds == [corruption.kinds(image_id) for image_id in validation.ids]
    assert sum(row.images for row in report.by_kind(validation, kinds)) == sum(map(len, kinds))

    source = report.pictures.Source(validation, documents, corruption, kinds)
    address = source.mistake(0, "corrupted").address
    assert address is not None
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as picture:
        got = np.asarray(picture.convert("RGB"), dtype=float)
    with Image.open(path) as clean:
        wanted = corruption(np.asarray(clean.convert("RGB")), validation.ids[0])
    assert got.shape == wanted.shape and np.abs(got - wanted).mean() < 15, "JPEG's own loss, and no more"


def ensemble_of(trained: list[Path], **more: Any) -> subject.Subject:
    assert main(["ensemble", "--checkpoints", *(str(run / "best.ckpt") for run in trained), "--weights", "3", "1"]) == 0
    content = json.loads(Path("ensemble.json").read_text())
    Path("ensemble.json").write_text(json.dumps(content | more))
    return subject.read(Path("ensemble.json"))


def test_an_ensembles_members_are_shown_beside_an_equal_vote(trained: list[Path], tmp_path: Path) -> None:
    equal = {"val_f1": 0.5, "val_f1_corrupted": 0.25, "val_f1_interval": [0.4, 0.6]}
    analysed = ensemble_of(trained, equal_vote=equal)
    report.write(tmp_path / "report.html", analysed, None)
    page = (tmp_path / "report.html").read_text()
    members = page[page.index('id="members"') : page.index('id="confusion"')]
    assert [word for word in ("75.0 %", "25.0 %", "0.400 to 0.600", "0.250") if word not in members] == []
    assert 'id="corruption"' in page, "the rows, and with them the kinds, stay with the predictions"
    assert "no member trained on" in page and 'id="training"' not in page


def test_folds_of_one_model_are_one_member(trained: list[Path], tmp_path: Path) -> None:
    pooled = [{"member": 0, "name": "resnet", "folds": 2, "val_f1": 0.7}]
    members = [
        {"checkpoint": f"fold{fold}.ckpt", "sha256": "", "weight": 2.0, "member": 0, "val_f1": 0.9} for fold in range(2)
    ]
    analysed = ensemble_of(trained, out_of_fold=pooled, members=members)
    assert not [m for m in analysed.members if m.name.endswith(".ckpt")]
    assert [(m.name, m.share, m.figures["val_f1"]) for m in analysed.members[-1:]] == [("resnet, 2 folds", 1.0, 0.7)]
    report.write(tmp_path / "report.html", analysed, None)
    page = (tmp_path / "report.html").read_text()
    assert "images. Each was predicted by the fold of each model that did not train on it. The macro F1 of" in page
    assert "The mean of the folds, which predicts new images, was not measured." in page
    assert "no member trained on" not in page and "divided by a temperature" not in page


@pytest.mark.parametrize("history", ["", "epoch,step\n1,x\n", "a,b\n1,2\n"])
def test_a_checkpoint_alone_or_beside_another_file_has_no_curves(
    history: str, trained: list[Path], tmp_path: Path
) -> None:
    shutil.copy(trained[0] / "best.ckpt", tmp_path / "best_model.ckpt")
    (tmp_path / "history.csv").write_text(history)
    assert report.content(subject.read(tmp_path / "best_model.ckpt"), None)["curves"] == []


def test_many_classes_have_a_list_of_confused_pairs_and_no_matrix(tmp_path: Path) -> None:
    classes = report.MATRIX + 20
    targets = np.arange(4 * classes) % classes
    predicted = np.where(np.arange(len(targets)) < 3 * classes, targets, (targets + 1) % classes)
    predicted[targets == 7] = 9
    probabilities = np.eye(classes, dtype=np.float32)[predicted]
    names = [f"class {number}" for number in range(classes)]
    assert report.confused(targets, probabilities, names)[:2] == [
        ("class 7", "class 9", 4, 1.0),
        ("class 0", "class 1", 1, 0.25),
    ]
    arrays = {"ids": [str(n) for n in range(len(targets))], "targets": targets, "probabilities": probabilities}
    val_predictions.write(tmp_path / "val_predictions.npz", {**arrays, "split_fingerprint": "x"}, names)
    report.write(tmp_path / "report.html", subject.read(tmp_path / "val_predictions.npz"), None)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert (
        "too many classes for a matrix" in page and "<td>class 7</td><td>class 9</td><td>4</td><td>100 %</td>" in page
    )
    assert len(page) < 1_500_000
