"""The model card (README.md) of an exported model: description, metrics and limits."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainer.base import figures
from trainer.base.names import GROUPED
from trainer.base.plural import counted
from trainer.models.checkpoint import Checkpoint, versions
from trainer.scores import intervals

HIDDEN = ("root", "resume", "device", "devices", "choices")
"""Settings that are not in the card: settings of the machine, and group names (the card shows their values)."""

CLASSIFY = """\
import json
import albumentations{imports}
from read_page import read_page

about = json.load(open("preprocessing.json", encoding="utf-8"))
steps = [getattr(albumentations, step["name"])(**step["arguments"]) for step in about["transforms"]]
prepare = albumentations.Compose(steps)
{load}

def classify(file):
    page = prepare(image=read_page(file, **about["read_page"]))["image"]
    images = page.transpose(2, 0, 1)[None]  # uint8 (1, 3, {size}, {size})
{run}
"""
"""Code of the card. It defines `classify`: a file → probabilities (classes,). The check of an export runs it."""

USE = """
probabilities = classify("page.jpg")
print(about["class_names"][probabilities.argmax()])
"""

RUN = {
    "onnx": (
        ", onnxruntime",
        'session = onnxruntime.InferenceSession("model.onnx")',
        '    return session.run(None, {"images": images})[0][0]',
    ),
    "torch_export": (
        ", torch",
        'model = torch.export.load("model.pt2").module()',
        "    return model(torch.from_numpy(images))[0].detach().numpy()",
    ),
    "safetensors": (
        ", timm, torch",
        """\
model = timm.create_model("local-dir:.", pretrained=True).eval()
mean, std = (torch.tensor(about[name]).view(3, 1, 1) for name in ("mean", "std"))""",
        """\
    logits = model((torch.from_numpy(images) / 255 - mean) / std)[0]
    return (logits / about["temperature"]).softmax(0).detach().numpy()""",
    ),
}
"""Imports, and code that loads the model and returns its probabilities for `images`."""


def lines(to: str, size: int) -> str:
    """The card's code for the format `to` and images of `size` × `size` pixels, which defines `classify`."""
    imports, load, run = RUN[to]
    return CLASSIFY.format(imports=imports, load=load, run=run, size=size)


@dataclass(frozen=True)
class Carried:
    """The comparison of the card's lines with the validation whose probabilities the checkpoint carries."""

    precision: str
    """Number format of that validation: bf16, fp16, fp32 or unknown."""
    same_class: int
    """Images with the same class."""
    mean: float
    """Mean over the images of the largest absolute difference between probabilities."""
    largest: float
    """Largest of all images."""
    allowed: float
    """Largest allowed mean."""
    margin: float | None = None
    """Of the images with another class: the largest difference between their two most likely classes by the card's
    lines. None if there are none."""

    @property
    def other_class(self) -> str:
        """A sentence about the images with another class, after a space. Empty if there are none."""
        if self.margin is None:
            return ""
        cause = f": {self.precision} rounds the weights" if self.precision in ("bf16", "fp16") else ""
        return (
            f" Where the class differs, the probabilities of the two most likely classes are at most {self.margin:.2g} "
            f"apart{cause}."
        )


@dataclass(frozen=True)
class Check:
    """The result of the comparison between an export and its checkpoint."""

    images: int
    source: str
    difference: float
    """The largest absolute difference between the probabilities of both models in float32, on the same pixels and by
    the card's lines."""
    allowed: float
    carried: Carried | None
    """None if there are no probabilities to compare."""
    varies: bool
    """Whether the preprocessing of a page is random."""


@dataclass(frozen=True)
class Export:
    """An exported file (`size` in bytes) and its origin."""

    to: str
    file: str
    parameters: int
    size: int
    sha256: str
    checkpoint_sha256: str
    check: Check


def render(checkpoint: Checkpoint, export: Export) -> str:
    """The card in Markdown. All metrics come from the checkpoint; the card says so if there are none."""
    settings = checkpoint.settings
    size = checkpoint.preprocessing["img_size"]
    usage = lines(export.to, size) + USE
    return "\n".join(
        [
            "---\nlibrary_name: timm\npipeline_tag: image-classification\ntags: [document-classification]\n---",
            f"# {settings.model.name}, {counted(len(checkpoint.class_names), 'kind')} of documents\n",
            f"`{export.file}` ({export.size / 1e6:.1f} MB, {export.parameters / 1e6:.1f}M parameters) classifies a "
            f"page as one of the kinds below. It takes batches of RGB images of {size} × {size} pixels. "
            "`read_page.py` reads a page as in training: orientation, paper, depth and reduction of its size. "
            "`preprocessing.json` has the other steps.\n",
            f"```python\n{usage}```\n",
            "## Metrics\n",
            _figures(checkpoint),
            "## Classes\n",
            _classes(checkpoint),
            "## Calibration\n",
            _calibration(checkpoint),
            "## Limits\n",
            _limits(checkpoint, export),
            "## Origin\n",
            _origin(checkpoint, export),
            "<details><summary>Training configuration</summary>\n",
            f"<pre>\n{html.escape(_configuration(checkpoint))}</pre>\n</details>",
            "",
        ]
    )


def _figures(checkpoint: Checkpoint) -> str:
    rows, known = [], figures.columns()
    for key, value in checkpoint.metrics.items():
        if isinstance(value, int | float) and key not in ("epoch", "step"):
            name = known[key].words if key in known else f"`{key}`"
            rows.append(f"| {name} | {value:.4f} | {_interval(checkpoint, key)} |")
    if not rows:
        return "The checkpoint has no metrics.\n"
    ids = checkpoint.validation.get("ids")
    count = f", {counted(len(ids), 'image')}" if ids else ""
    grouped = f" They are too narrow: {GROUPED}." if checkpoint.provenance.get("groups") else ""
    note = (
        f"Measured on the validation split{count}, which also chose the best epoch. So the values are optimistic, most "
        f"of all with few images. Intervals come from a bootstrap over the images.{grouped} Without mistakes there is "
        "no interval: after N correct images up to 3/N of new images may be wrong (the rule of three).\n"
    )
    return "\n".join(["| metric | value | 95 % interval |", "| --- | --- | --- |", *rows, "", note])


def _interval(checkpoint: Checkpoint, key: str) -> str:
    """The interval of a macro F1, if the checkpoint has its probabilities."""
    stored = {figures.F1.column(): "probabilities", figures.F1.column("corrupted"): "corrupted"}
    probabilities = checkpoint.validation.get(stored.get(key, ""))
    if probabilities is None:
        return "–"
    predicted, targets = probabilities.argmax(1).numpy(), checkpoint.validation["targets"].numpy()
    return intervals.in_table(
        intervals.interval(targets, predicted, len(checkpoint.class_names)), checkpoint.metrics[key], 4
    )


def _classes(checkpoint: Checkpoint) -> str:
    named = enumerate(zip(checkpoint.class_names, checkpoint.labels, strict=True))
    rows = [f"| {row} | {_literal(name)} | {_literal(label)} |" for row, (name, label) in named]
    head = ["| output | class | label in the data |", "| --- | --- | --- |"]
    if checkpoint.validation:
        targets = checkpoint.validation["targets"].numpy()
        predicted = checkpoint.validation["probabilities"].argmax(1).numpy()
        counts = figures.count(targets, predicted, len(checkpoint.class_names))
        bounds = intervals.class_intervals(targets, predicted, len(checkpoint.class_names))
        head = [head[0] + " validation images | F1 | 95 % interval |", head[1] + " --- | --- | --- |"]
        rows = [
            f"{row} {count:.0f} | {f'{value:.3f} | {intervals.in_table(sure, value)}' if count else '– | –'} |"
            for row, count, value, sure in zip(rows, counts.labelled, figures.class_f1(counts), bounds, strict=True)
        ]
    return "\n".join([*head, *rows, ""])


def _literal(name: str) -> str:
    """The name in a table of Markdown, where nothing of it is Markdown or HTML."""
    return re.sub(r"[\\`*_{}\[\]<>()#+!|~&$@:-]", lambda sign: f"&#{ord(sign[0])};", name)


def _calibration(checkpoint: Checkpoint) -> str:
    if not checkpoint.calibration:
        return "Not calibrated: the probabilities are the softmax of the logits.\n"
    text = (
        f"Probabilities are softmax(logits / {checkpoint.temperature:.4g}). "
        "The temperature was fitted on validation images."
    )
    if "ece" in checkpoint.calibration and "ece_calibrated" in checkpoint.calibration:
        before, after = checkpoint.calibration["ece"], checkpoint.calibration["ece_calibrated"]
        text += f" Expected calibration error on the same images: {before:.4f} before, {after:.4f} after."
    return text + "\n"


def _limits(checkpoint: Checkpoint, export: Export) -> str:
    lines = [
        "The validation images are from the same data set as the training images"
        + (
            ". The metrics are for clean images and corrupted copies. The corruption simulates rotated, blurred and "
            "photographed pages; it is not a sample of your pages."
            if figures.F1.column("corrupted") in checkpoint.metrics
            else ". Rotated, blurred, cropped and photographed pages, and pages from other sources, were not measured. "
            "Expect lower metrics for them."
        ),
        "The model knows only the classes above. A page of another kind gets one of them, perhaps with a high "
        "probability.",
        f"The export was compared with its checkpoint on {export.check.source}. The probabilities differ by at most "
        f"{export.check.difference:.1e} (allowed: {export.check.allowed:g}), in float32 on a CPU"
        + (", by onnxruntime's CPU provider" if export.to == "onnx" else "")
        + f".{_carried(export.check)} Not tested: GPUs (including Apple's), other runtimes, lower precision and "
        "quantisation.",
    ]
    if export.check.varies:
        lines.append(
            "The preprocessing has a random part, as in validation: its result for a page is slightly different each "
            "time. `albumentations.Compose(steps, seed=0)` repeats one sequence."
        )
    return "\n".join(f"- {line}" for line in lines) + "\n"


def _carried(check: Check) -> str:
    carried = check.carried
    if carried is None:
        return " The lines above were not compared with the validation."
    return (
        f" The lines above give the class of the validation ({carried.precision}) for {carried.same_class} of "
        f"{counted(check.images, 'image')}. The largest difference of an image's probabilities is {carried.mean:.1e} "
        f"on average (allowed: {carried.allowed:g}), and {carried.largest:.1e} at most.{carried.other_class}"
    )


def _origin(checkpoint: Checkpoint, export: Export) -> str:
    config = checkpoint.settings
    facts = {
        "configuration": ", ".join(f"{key}={value}" for key, value in config.choices.items() if key != "model"),
        "seed": f"{config.seed}; of the split: {config.data.split_seed}",
        "epoch, step": ", ".join(
            str(checkpoint.metrics[key]) for key in ("epoch", "step") if key in checkpoint.metrics
        ),
        "fingerprint of the data": checkpoint.provenance.get("data_fingerprint"),
        "fingerprint of the split": checkpoint.validation.get("split_fingerprint"),
        "git commit": checkpoint.provenance.get("git_sha"),
        "trained with": _versions(checkpoint.versions),
        "exported with": _versions(versions() | _exporters(export.to)),
        "SHA-256 of the checkpoint": f"`{export.checkpoint_sha256}`",
        f"SHA-256 of `{export.file}`": f"`{export.sha256}`",
    }
    rows = [f"| {name} | {value} |" for name, value in facts.items() if value]
    return "\n".join(["| what | value |", "| --- | --- |", *rows, ""])


def _versions(named: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in named.items())


def _exporters(to: str) -> dict[str, str]:
    from importlib.metadata import version

    names = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "safetensors": ("safetensors",)}.get(to, ())
    return {name: version(name) for name in (*names, "albumentations", "opencv-python-headless", "pillow")}


def _configuration(checkpoint: Checkpoint) -> str:
    return yaml.safe_dump(_public(checkpoint.config), sort_keys=False, allow_unicode=True, width=110)


def _public(value: Any) -> Any:
    """Settings without those of the machine. Of a file path only the name."""
    if isinstance(value, dict):
        return {key: _public(part) for key, part in value.items() if key not in HIDDEN}
    if isinstance(value, list):
        return [_public(part) for part in value]
    if isinstance(value, str) and value.startswith(("/", "~", "..")):
        return Path(value).name
    return value
