"""A page in every format and orientation, on every path from file to class: training, validation, prediction, export."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from tests.trainer.conftest import CLASSES, draw
from tests.trainer.images.test_read_page import BACK
from trainer.cli.main import main
from trainer.data.table import Table
from trainer.export import export
from trainer.images import decode, reading
from trainer.models import build, checkpoint
from trainer.predict import inference

SAVED: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("RGB", {}),
    "bmp": ("RGB", {}),
    "gif": ("P", {}),
    "webp": ("RGB", {"lossless": True}),
    "lzw.tif": ("RGB", {"compression": "tiff_lzw"}),
    "raw.tif": ("RGB", {}),
    "alpha.png": ("RGBA", {}),
    "alpha.tif": ("RGBA", {}),
    "palette.png": ("P", {}),
    "palette.tif": ("P", {}),
}
"""Formats without loss: mode and arguments."""


def save_all(page: Image.Image, folder: Path, name: str) -> list[Path]:
    """The page, which has a palette, in every format, and in every orientation that the format knows."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for ending, (mode, arguments) in SAVED.items():
        for tag, back in BACK.items():
            if ending in ("bmp", "gif") and tag > 1:
                continue
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = tag
            more = {"tiffinfo": {274: tag}} if ending.endswith("tif") else {"exif": exif} if tag > 1 else {}
            stored = page if back is None else page.transpose(back)
            stored = stored if mode == "P" else stored.convert(mode)
            made.append(folder / f"{name}-{tag}.{ending}")
            stored.save(made[-1], **arguments, **more)
    return made


def classify_by(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    """The function that the card in `folder` defines."""
    code = re.findall(r"^```python\n(.*?)^```$", (folder / "README.md").read_text(), re.S | re.M)[0]
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    sys.modules.pop("read_page", None)  # of another export
    names: dict[str, Any] = {}
    exec(code.partition("\nprobabilities = ")[0], names)
    classify: Callable[[Any], Any] = names["classify"]
    return classify


def test_formats_and_paths_have_equal_pixels_and_equal_classes(
    trained: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """80 files of three pages, at the size of the model and larger than twice of it."""
    root, truth = tmp_path / "data", {}
    for kind in range(len(CLASSES)):
        drawn = draw(kind, 77 + kind)
        size = (drawn.width * (1 + 2 * (kind == 1)), drawn.height * (1 + 2 * (kind == 1)))
        page = drawn.resize(size, Image.Resampling.NEAREST).quantize(64)
        truth |= dict.fromkeys(save_all(page, root / "test", f"page{kind}"), page.convert("RGB"))
    best = trained[0] / "best.ckpt"
    about = checkpoint.load(best).preprocessing
    limit = decode.Limit.of(about["transforms"])
    assert about["fast"] and limit is not None

    paths = list(truth)
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    images = decode.shared(paths, [path.name for path in paths], limit, None, "f")
    first: dict[str, Any] = {}
    for row, path in enumerate(paths):
        one = first.setdefault(path.name[:5], {"model": images(row), "whole": np.asarray(truth[path])})
        for name, seen in {"model": images(row), "whole": images.whole(row)}.items():
            assert seen.shape == one[name].shape, (path.name, name)
            assert np.abs(seen.astype(int) - one[name]).max() <= 1, (path.name, name)
        assert np.array_equal(np.asarray(reading.open_image(path)), images.whole(row))
    images.close()

    words = [f"checkpoint={best}", f"data.root={root}", "precision=fp32", "device=cpu"]
    assert main(["predict", *words, f"output={tmp_path / 'predicted'}"]) == 0
    with np.load(tmp_path / "predicted" / "predictions.npz") as stored:
        predicted = dict(zip(stored["ids"].tolist(), stored["probabilities"], strict=True))
    assert main(["export", f"checkpoint={best}", "to=safetensors", f"output={tmp_path / 'made'}"]) == 0
    classify = classify_by(tmp_path / "made", monkeypatch)
    assert predicted.keys() == {path.name for path in paths}
    for path in paths:
        by_card, one = classify(path), predicted[f"{path.name[:5]}-1.png"]
        np.testing.assert_allclose(by_card, predicted[path.name], atol=1e-5, err_msg=path.name)
        assert by_card.argmax() == predicted[path.name].argmax() == one.argmax(), path.name
        np.testing.assert_allclose(by_card, one, atol=0.01, err_msg=path.name)
    assert (
        len({predicted[f"page{kind}-1.png"].argmax() for kind in range(3)}) > 1
        or np.ptp(np.stack(list(predicted.values())), axis=0).max() > 1e-3
    ), "what is the same for all pages would prove nothing"


@pytest.mark.shared
def test_real_scans_get_the_class_of_predict_by_the_lines_of_the_card(
    shared: Path, trained: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the default augmentation, whose linear resize and CLAHE make much of a page's pixels. The weights are real,
    the last layer is random: its classes are as near to each other as they can be."""
    size, root = 96, shared / "documents"
    kept = checkpoint.load(trained[0] / "best.ckpt")
    model = {**kept.config["model"], "name": "tf_efficientnet_lite0", "pretrained": True}
    model["weights"] = str(shared / "weights" / "tf_efficientnet_lite0.safetensors")
    config = {**kept.config, "model": model}
    transforms = [
        {name: {key: size if value == 64 else value for key, value in arguments.items()}}
        for step in kept.preprocessing["transforms"]
        for name, arguments in step.items()
    ]
    names = [f"kind {number}" for number in range(8)]
    preprocessing = {**kept.preprocessing, "transforms": transforms, "img_size": size}
    made = checkpoint.Checkpoint({}, names, names, config, preprocessing)
    torch.manual_seed(0)
    net: Any = build.create(made.settings.model, 8, size)
    torch.nn.init.normal_(net.get_classifier().weight, std=0.2)
    checkpoint.save(
        tmp_path / "best.ckpt", checkpoint.Checkpoint(net.state_dict(), names, names, config, preprocessing)
    )

    with (root / "sample_submission.csv").open() as file:
        ids = [row["ID"] for row in csv.DictReader(file)]
    paths = [root / "test" / i for i in ids]
    table = Table(ids, paths, [], names, names)
    options = inference.Options("cpu", "fp32")
    predicted = inference.probabilities([checkpoint.load(tmp_path / "best.ckpt")], table, options)[0].numpy()
    export.export(tmp_path / "best.ckpt", "safetensors", tmp_path / "made", images=4)
    classify = classify_by(tmp_path / "made", monkeypatch)
    by_card = np.stack([classify(path) for path in paths])
    same = int((by_card.argmax(1) == predicted.argmax(1)).sum())
    print(f"{same} of {len(ids)} with the same class; largest difference {np.abs(by_card - predicted).max():.1e}")
    assert same == len(ids) == 160 and np.abs(by_card - predicted).max() < 1e-4
    assert len(set(predicted.argmax(1))) > 3, "what is the same for all pages would prove nothing"

    # The last layer makes much of every rounding. Float32 where few numbers are summed takes away most of it, and float32
    # for pages of which the model is unsure the rest.
    means, classes, few = [], [], Table(ids[::4], paths[::4], [], names, names)
    few_channels = build.FEW_CHANNELS
    for channels, unsure in ((0, 0.0), (few_channels, 0.0), (few_channels, inference.UNSURE), (0, 0.5)):
        monkeypatch.setattr(build, "FEW_CHANNELS", channels)
        monkeypatch.setattr(inference, "UNSURE", unsure)
        in_bf16 = inference.Options("cpu", "bf16")
        rounded = inference.probabilities([checkpoint.load(tmp_path / "best.ckpt")], few, in_bf16)[0].numpy()
        means.append(float(np.abs(rounded - predicted[::4]).max(1).mean()))
        classes.append(int((rounded.argmax(1) != predicted[::4].argmax(1)).sum()))
    print(f"bf16: mean differences {means}, pages with another class {classes}")
    assert 0 < means[1] < 0.7 * means[0] and means[2] < means[1]
    assert classes[0] > 0 and classes[2] == classes[3] == 0
