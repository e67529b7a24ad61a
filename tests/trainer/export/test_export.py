"""export: each format gives the checkpoint's probabilities when read back, and its card says what was measured."""

from __future__ import annotations

import html
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import albumentations
import numpy as np
import onnxruntime
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from trainer.cli.main import main
from trainer.config.plain import to_dict
from trainer.config.schema import Config, DataConfig, ModelConfig
from trainer.data.rows import Table
from trainer.export import card, export
from trainer.images import read_page
from trainer.images.files import find_image
from trainer.images.reading import open_image
from trainer.models import build, checkpoint
from trainer.predict import inference
from trainer.scores import intervals

TRANSFORMS = [{"Resize": {"height": 64, "width": 64}}, {"CLAHE": {"clip_limit": [4.0, 4.0], "p": 1.0}}]


def carrying(kept: checkpoint.Checkpoint, documents: Path) -> checkpoint.Checkpoint:
    """The checkpoint with the probabilities that it gives its validation images."""
    ids = kept.validation["ids"]
    paths = [path for i in ids if (path := find_image(documents, i)) is not None]
    table = Table(ids, paths, [], kept.class_names, kept.labels)
    bare = replace(kept, calibration={})
    probabilities = inference.probabilities([bare], table, inference.Options("cpu", "fp32"))[0]
    return replace(kept, validation={**kept.validation, "probabilities": probabilities})


@pytest.fixture
def plain(trained: list[Path], documents: Path, tmp_path: Path) -> Path:
    """A trained checkpoint whose preprocessing has no random part."""
    kept = checkpoint.load(trained[0] / "best.ckpt")
    kept = carrying(replace(kept, preprocessing={**kept.preprocessing, "transforms": TRANSFORMS}), documents)
    calibration = {"temperature": 2.5, "ece": 0.25, "ece_calibrated": 0.125}
    checkpoint.save(tmp_path / "plain.ckpt", replace(kept, calibration=calibration))
    return tmp_path / "plain.ckpt"


def expected(kept: checkpoint.Checkpoint, image: Path, temperature: float) -> torch.Tensor:
    """The checkpoint's probabilities (1, classes) for one page, without the code that exports."""
    about = kept.preprocessing
    net = timm.create_model(kept.config["model"]["name"], num_classes=len(kept.class_names)).eval()
    net.load_state_dict(kept.state_dict)
    steps = [getattr(albumentations, name)(**arguments) for step in TRANSFORMS for name, arguments in step.items()]
    page = albumentations.Compose(steps)(image=np.asarray(open_image(image)))["image"] / 255.0
    values = torch.from_numpy((page - about["mean"]) / about["std"]).float().permute(2, 0, 1)[None]
    with torch.inference_mode():
        return (net(values) / temperature).softmax(1)


@pytest.mark.parametrize("to", list(export.FORMATS))
def test_the_lines_of_the_card_give_the_checkpoints_probabilities(
    plain: Path,
    documents: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    to: str,
) -> None:
    """Calibrated ones, by the card's Python as it stands, run in the export's folder."""
    words = [f"checkpoint={plain}", f"to={to}", f"data.root={documents}", "batch_size=3"]
    assert main(["export", *words]) == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert err == "" and len(lines) == 4 and lines[1].startswith(f"checked on 8 validation images of {documents}: ")
    assert lines[2].startswith("by the lines of its card, 8 of 8 images get the class of the validation (")
    folder = tmp_path / "export" / to
    for file in folder.iterdir():
        assert b"site-packages" not in file.read_bytes(), f"{file} names this machine's files"
        assert file.stat().st_mode == plain.stat().st_mode
    card = (folder / "README.md").read_text()
    assert "softmax(logits / 2.5)" in card and "0.2500 before, 0.1250 after" in card
    kept = checkpoint.load(plain)
    page = find_image(documents, kept.validation["ids"][2])
    assert page is not None
    (folder / "page.jpg").write_bytes(page.read_bytes())
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    sys.modules.pop("read_page", None)  # of another export
    code = re.findall(r"^```python\n(.*?)^```$", card, re.S | re.M)[0]
    names: dict[str, Any] = {}
    exec(code, names)
    want = expected(kept, page, 2.5)
    np.testing.assert_allclose(names["probabilities"], want[0].numpy(), atol=1e-5)
    assert capfd.readouterr().out == kept.class_names[int(want.argmax())] + "\n"
    assert "trainer" not in code and Path(names["read_page"].__code__.co_filename).parent == folder
    assert (folder / "read_page.py").read_bytes() == Path(read_page.__file__).read_bytes()


def test_an_attention_model_takes_batches_of_any_size(trained: list[Path], tmp_path: Path) -> None:
    assert main(["export", f"checkpoint={trained[1] / 'best.ckpt'}", "to=onnx", "output=made"]) == 0
    session = onnxruntime.InferenceSession(tmp_path / "made" / "model.onnx")
    assert session.get_inputs()[0].shape == ["batch", 3, 160, 160] and session.get_inputs()[0].type == "tensor(uint8)"
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 160, 160), dtype=np.uint8)
    together = session.run(None, {"images": images})[0]
    alone = np.concatenate([session.run(None, {"images": images[row : row + 1]})[0] for row in range(5)])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert together.std(0).max() > 1e-4, "what is the same for all images would prove nothing"


def test_the_card_has_the_checkpoints_figures_and_no_path_of_the_machine(
    trained: list[Path], documents: Path, tmp_path: Path
) -> None:
    kept = checkpoint.load(trained[0] / "best.ckpt")
    chance = {**kept.preprocessing, "transforms": [*TRANSFORMS, {"RandomBrightnessContrast": {"p": 1.0}}]}
    checkpoint.save(tmp_path / "more.ckpt", replace(kept, preprocessing=chance))
    assert main(["export", "checkpoint=more.ckpt", "to=safetensors", f"data.root={documents}", "output=made"]) == 0
    card = (tmp_path / "made" / "README.md").read_text()
    for key, part in (("val_f1", "probabilities"), ("val_f1_corrupted", "corrupted")):
        predicted = kept.validation[part].argmax(1).numpy()
        sure = intervals.interval(kept.validation["targets"].numpy(), predicted, 3)
        assert f"| {kept.metrics[key]:.4f} | {intervals.in_table(sure, kept.metrics[key], 4)} |" in card
    assert "and corrupted copies" in card and "were not measured" not in card
    assert kept.validation["split_fingerprint"] in card and kept.provenance["data_fingerprint"] in card
    assert "8 validation images" in card
    assert all(name in card for name in kept.class_names)
    assert str(documents) not in card and str(tmp_path) not in card
    assert "The preprocessing has a random part" in card


def test_names_of_classes_are_text_in_the_card(plain: Path, tmp_path: Path) -> None:
    """Not Markdown and not HTML."""
    kept = checkpoint.load(plain)
    names = ["<script>alert(1)</script>", "a|b **c** `d` [e](http://f) $g$", "청구서_1"]
    checkpoint.save(tmp_path / "odd.ckpt", replace(kept, class_names=names))
    export.export(tmp_path / "odd.ckpt", "safetensors", tmp_path / "made", images=2)
    card = (tmp_path / "made" / "README.md").read_text()
    rows = [line.split(" | ")[1] for line in card.splitlines() if re.match(r"\| [012] \|", line)]
    assert [html.unescape(row) for row in rows] == names
    assert not re.search(r"[<>*`\[\]$_]", "".join(rows))


def test_the_card_says_what_a_checkpoint_lacks(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = replace(checkpoint.load(plain), metrics={}, validation={}, calibration={}, provenance={})
    checkpoint.save(tmp_path / "bare.ckpt", bare)
    assert main(["export", "checkpoint=bare.ckpt", "to=safetensors", "images=5"]) == 0
    assert "checked on 5 drawn pages, not real ones (no data folder)" in capsys.readouterr().out
    card = (tmp_path / "export" / "safetensors" / "README.md").read_text()
    assert "The checkpoint has no metrics." in card and "F1" not in card and "Not calibrated" in card
    assert "were not measured" in card and "5 drawn pages, not real ones" in card and "random part" not in card


def test_what_differs_from_the_checkpoint_is_not_kept(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(folder: Path) -> export.Run:
        run = export._read_safetensors(folder)
        return lambda images: run(images) * 0.999

    monkeypatch.setitem(export.FORMATS, "safetensors", replace(export.FORMATS["safetensors"], read=other))
    assert main(["export", f"checkpoint={plain}", "to=safetensors", "output=a/b"]) == 1
    assert "differ from the checkpoint's by" in capsys.readouterr().err
    kept = checkpoint.load(plain)
    state = {key: value * torch.nan if value.is_floating_point() else value for key, value in kept.state_dict.items()}
    checkpoint.save(tmp_path / "nan.ckpt", replace(kept, state_dict=state))
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main(["export", "checkpoint=nan.ckpt", "to=safetensors", "output=c"]) == 1
    assert "by nan on" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nan.ckpt", "plain.ckpt"]


@pytest.fixture
def large(trained: list[Path], documents: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A trained checkpoint and its validation images in four times the size, as PNG: reduced before they are resized."""
    root = tmp_path / "large"
    (root / "train").mkdir(parents=True)
    kept = checkpoint.load(trained[0] / "best.ckpt")
    for i in kept.validation["ids"]:
        page = open_image(find_image(documents, i) or Path())
        page.resize((page.width * 5, page.height * 5), Image.Resampling.NEAREST).save(root / "train" / i, "PNG")
    checkpoint.save(tmp_path / "best.ckpt", carrying(kept, root))
    return tmp_path / "best.ckpt", root


def test_the_export_is_compared_with_the_validation_by_the_lines_of_its_card(
    large: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card whose lines read a page in another way than the validation is not kept."""
    path, root = large
    words = ["export", f"checkpoint={path}", "to=safetensors", f"data.root={root}", "output=made"]
    assert main(words) == 0
    said = capsys.readouterr().out
    found = re.search(r"by the lines of its card, (\d+) of 8 .* by (\S+) on average \(allowed: (\S+)\)", said)
    assert found is not None and found[1] == "8" and float(found[2]) < 1e-4
    about = json.loads((tmp_path / "made" / "preprocessing.json").read_text())
    assert about["read_page"] == {"longest": 64, "interpolation": 1} and about["format"] == export.FORMAT
    assert "the class of the validation" in (tmp_path / "made" / "README.md").read_text()

    whole = card.CLASSIFY.replace(', **about["read_page"]', "")
    monkeypatch.setattr(card, "CLASSIFY", whole)
    assert main([*words, "--force"]) == 1
    assert "differ from the checkpoint's by" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    kept = checkpoint.load(path)
    checkpoint.save(path, replace(kept, validation={**kept.validation, "probabilities": torch.eye(3)[[0] * 8]}))
    assert main([*words, "--force"]) == 1
    message = capsys.readouterr().err
    assert "differ from those of the validation in training by" in message and "get another class" in message
    assert "Have these files changed since the training?" in message


def test_bf16_is_allowed_more_than_fp32_and_every_tolerance_is_printed(
    plain: Path, documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = checkpoint.load(plain)
    for precision, allowed in (("fp32", "0.005"), ("bf16", "0.04"), ("", "0.04")):
        provenance = {"precision": precision} if precision else {}  # of an earlier version
        checkpoint.save(plain, replace(kept, provenance=provenance))
        words = [f"checkpoint={plain}", "to=safetensors", f"data.root={documents}", "images=3", "--force"]
        assert main(["export", *words]) == 0
        assert f"validation ({precision or 'unknown'}); probabilities differ by" in (said := capsys.readouterr().out)
        assert f"(allowed: {allowed})" in said and "(allowed: 0.0001)" in said


def test_pages_with_another_class_than_in_the_validation_have_their_margin_in_words(
    plain: Path, documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = checkpoint.load(plain)
    own = kept.validation["probabilities"]
    other = torch.eye(len(kept.class_names))[(own.argmax(1) + 1) % len(kept.class_names)]
    best = own.sort(1, descending=True).values
    margin = float((best[:, 0] - best[:, 1]).max())
    words = ["export", f"checkpoint={plain}", "to=safetensors", f"data.root={documents}", "output=made", "--force"]
    for precision, cause in (("bf16", ": bf16 rounds the weights."), ("fp32", ".")):
        monkeypatch.setitem(export.CARRIED, precision, 1.0)
        provenance = {**kept.provenance, "val_precision": precision}
        changed = {**kept.validation, "probabilities": other}
        checkpoint.save(plain, replace(kept, provenance=provenance, validation=changed, calibration={}))
        assert main(words) == 0
        card_text = (tmp_path / "made" / "README.md").read_text()
        for text in (capsys.readouterr().out, card_text):
            found = re.search(r"Where the class differs, .* classes are at most (\S+) apart(: .*weights)?\.", text)
            assert found is not None and found[0].endswith("apart" + cause), text
            assert float(found[1]) == pytest.approx(margin, abs=0.01)
    checkpoint.save(plain, kept)
    assert main(words) == 0
    assert "Where the class differs" not in capsys.readouterr().out


def test_a_page_with_an_augmentation_of_the_trainer_is_not_exported(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = checkpoint.load(plain)
    preprocessing = {**kept.preprocessing, "transforms": [*TRANSFORMS, "InkStain"]}
    checkpoint.save(plain, replace(kept, preprocessing=preprocessing))
    assert main(["export", f"checkpoint={plain}", "to=safetensors"]) == 64
    assert "data.val_transforms has InkStain, which albumentations does not have" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [plain]


def test_an_export_is_replaced_only_by_force_and_nothing_else_is(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", f"checkpoint={plain}", "to=safetensors", "images=2", "output=made"]
    assert main(words) == 0
    assert main(words) == 64
    assert "has an export already; replace it with --force" in capsys.readouterr().err
    for name in ("model.onnx", "mine.txt"):
        (tmp_path / "made" / name).write_text("earlier")
    (tmp_path / "made" / "model.safetensors").write_text("earlier")
    assert main([*words, "--force"]) == 0
    names = ["README.md", "config.json", "mine.txt", "model.safetensors", "preprocessing.json", "read_page.py"]
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == names
    assert (tmp_path / "made" / "model.safetensors").stat().st_size > 1_000_000
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "README.md").write_text("mine")
    assert main(["export", f"checkpoint={plain}", "to=safetensors", "output=own", "--force"]) == 64
    assert "the folder is not empty and has no export" in capsys.readouterr().err
    assert (tmp_path / "own" / "README.md").read_text() == "mine"


def test_what_a_killed_export_left_is_in_nobodys_way(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["export", f"checkpoint={plain}", "to=safetensors", "images=2", "output=made"]
    (tmp_path / "made" / ".export-killed").mkdir(parents=True)
    (tmp_path / "made" / ".export-killed" / "model.onnx").write_text("half")
    assert main(words) == 0
    names = ["README.md", "config.json", "model.safetensors", "preprocessing.json", "read_page.py"]
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == names
    (tmp_path / "made" / "preprocessing.json").unlink()  # killed while the files took their places: this is the last
    (tmp_path / "made" / ".export-killed").mkdir()
    assert main(words) == 64
    assert main([*words, "--force"]) == 0
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == names

    def full(temporary: Path, path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    (tmp_path / "made" / "model.onnx").write_text("earlier")
    monkeypatch.setattr(export, "settle", full)
    assert main([*words, "--force"]) != 0
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == sorted([*names, "model.onnx"])


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["checkpoint={plain}", "to=onx"], 64, "did you mean 'onnx'?"),
        (["checkpoint={plain}"], 64, "--to"),
        (["checkpoint=none.ckpt", "to=onnx"], 64, "none.ckpt: checkpoint not found"),
        (["checkpoint=ensemble.json", "to=onnx"], 64, "an ensemble has several models; export each with"),
        (["checkpoint={plain}", "to=onnx", "output={plain}"], 64, "is a file; give a folder with --output DIR"),
        (["checkpoint={plain}", "to=onnx", "data.root=nowhere"], 65, "nowhere"),
    ],
)
def test_a_wrong_call_is_one_clear_error(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, said: str
) -> None:
    assert main(["export", *(word.format(plain=plain) for word in words)]) == code
    message = capsys.readouterr().err
    assert said in message and "Traceback" not in message
    assert list(tmp_path.iterdir()) == [plain], "nothing is written"


@pytest.mark.parametrize("package", ["onnxruntime", "onnxscript"])
def test_a_missing_package_is_named(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["export", f"checkpoint={plain}", "to=onnx"]) == 1
    assert f"package {package} is not installed; run: pip install" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [plain]


def telling(config: ModelConfig, size: int, classes: int = 17) -> checkpoint.Checkpoint:
    """A checkpoint without training whose probabilities differ from page to page: normalisation layers have seen the
    drawn pages, and each class's logit has a standard deviation of 1 over them.

    Of 2, efficientnet_b4 differs by 1.1e-4: onnxruntime's Sigmoid is off by up to 1.5e-7, which 100 layers of random
    weights amplify."""
    settings = Config(model=config, data=DataConfig(img_size=size))
    torch.manual_seed(0)
    net: nn.Module = build.create(config, classes, size)
    mean, std = build.mean_std(config.name)
    preprocessing = {
        "img_size": size,
        "mean": list(mean),
        "std": list(std),
        "transforms": [{"Resize": {"height": size, "width": size}}],
    }
    names = [f"kind {number}" for number in range(classes)]
    kept = checkpoint.Checkpoint({}, names, names, to_dict(settings), preprocessing)
    images = export.check_pages(kept, None, 10).images
    normalized = build.Normalized(net, mean, std, channels_last=False)
    head = net.get_classifier()  # type: ignore[operator]
    with torch.no_grad():
        nn.init.normal_(head.weight)
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = None
        normalized.train()(images)
        logits = normalized.eval()(images)
        spread = logits.std(0)
        head.weight /= spread[:, None]
        head.bias.copy_((head.bias - logits.mean(0)) / spread)
    return replace(kept, state_dict=net.state_dict())


def check_onnx(kept: checkpoint.Checkpoint, folder: Path, root: Path | None) -> None:
    checkpoint.save(folder / "best.ckpt", kept)
    check = export.export(folder / "best.ckpt", "onnx", folder / "made", root, images=6, batch_size=5)
    session = onnxruntime.InferenceSession(folder / "made" / "model.onnx")
    found = session.run(None, {"images": export.check_pages(kept, root, 6).images.numpy()})[0]
    print(f"{kept.settings.model.name}: largest difference {check.difference:.1e}")
    assert check.difference <= 1e-4
    assert found.std(0).max() > 0.05, "what is the same for all pages would prove nothing"


def test_the_lines_of_the_docs_are_those_of_a_card() -> None:
    page = (Path(__file__).parents[3] / "docs" / "export.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python[^\n]*\n(.*?)^```$", page, re.S | re.M)
    assert block == card.lines("onnx", 768) + card.USE


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "resnet34",
        "resnet50",
        "efficientnet_b4",
        "convnext_base",
        "swin_base_patch4_window12_384",
        "deit_base_patch16_384",
    ],
)
def test_the_manuals_six_models_are_the_same_in_onnx(tmp_path: Path, name: str) -> None:
    check_onnx(telling(ModelConfig(name=name, pretrained=False), 384), tmp_path, None)


@pytest.mark.slow
@pytest.mark.shared
def test_real_weights_on_real_scans_are_the_same_in_onnx(shared: Path, tmp_path: Path) -> None:
    weights = shared / "weights" / "tf_efficientnet_lite0.safetensors"
    kept = telling(ModelConfig(name="tf_efficientnet_lite0", weights=str(weights)), 384)
    ids = sorted(path.name for path in (shared / "documents" / "train").iterdir())[::50]
    targets = torch.zeros(len(ids), dtype=torch.long)
    kept = carrying(replace(kept, validation={"ids": ids, "targets": targets}), shared / "documents")
    check_onnx(kept, tmp_path, shared / "documents")
