"""The model card (README.md) of an exported model: description, metrics and limits."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainer.base import figures
from trainer.models import checkpoint
from trainer.scores import intervals

HIDDEN = ("root", "resume", "device", "devices", "choices")
"""Settings that are not in the card: settings of the machine, and group names (the card shows their values)."""

PREPARE = """\
import json
import albumentations, numpy{imports}
from PIL import Image, ImageOps

about = json.load(open("preprocessing.json"))
steps = [getattr(albumentations, step["name"])(**step["arguments"]) for step in about["transforms"]]
page = numpy.asarray(ImageOps.exif_transpose(Image.open("page.jpg")).convert("RGB"))
images = albumentations.Compose(steps)(image=page)["image"].transpose(2, 0, 1)[None]  # uint8 (1, 3, {size}, {size})
"""

RUN = {
    "onnx": (
        ", onnxruntime",
        """\
probabilities = onnxruntime.InferenceSession("model.onnx").run(None, {"images": images})[0]
""",
    ),
    "torch_export": (
        ", torch",
        """\
probabilities = torch.export.load("model.pt2").module()(torch.from_numpy(images)).detach().numpy()
""",
    ),
    "safetensors": (
        ", timm, torch",
        """\
net = timm.create_model("local-dir:.", pretrained=True).eval()
mean, std = (torch.tensor(about[name]).view(3, 1, 1) for name in ("mean", "std"))
logits = net((torch.from_numpy(images) / 255 - mean) / std)
probabilities = (logits / about["temperature"]).softmax(1).detach().numpy()
""",
    ),
}
"""Imports, and code that computes `probabilities` (1, classes) from `images`."""


@dataclass(frozen=True)
class Check:
    """The result of the comparison between an export and its checkpoint."""

    images: int
    source: str
    difference: float
    """The largest absolute difference between probabilities."""
    allowed: float
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


def render(kept: checkpoint.Checkpoint, made: Export) -> str:
    """The card in Markdown. All metrics come from the checkpoint; the card says so if there are none."""
    settings = kept.settings
    size = kept.preprocessing["img_size"]
    imports, lines = RUN[made.to]
    usage = (
        PREPARE.format(imports=imports, size=size) + lines + 'print(about["class_names"][probabilities[0].argmax()])'
    )
    return "\n".join(
        [
            "---\nlibrary_name: timm\npipeline_tag: image-classification\ntags: [document-classification]\n---",
            f"# {settings.model.name}, {len(kept.class_names)} kinds of documents\n",
            f"`{made.file}` ({made.size / 1e6:.1f} MB, {made.parameters / 1e6:.1f}M parameters) classifies a page as "
            f"one of the kinds below. It takes batches of RGB images of {size} × {size} pixels. `preprocessing.json` "
            "describes how to prepare them.\n",
            f"```python\n{usage}\n```\n",
            "## Metrics\n",
            _figures(kept),
            "## Classes\n",
            _classes(kept),
            "## Calibration\n",
            _calibration(kept),
            "## Limits\n",
            _limits(kept, made),
            "## Origin\n",
            _origin(kept, made),
            "<details><summary>Training configuration</summary>\n",
            f"<pre>\n{html.escape(_configuration(kept))}</pre>\n</details>",
            "",
        ]
    )


def _figures(kept: checkpoint.Checkpoint) -> str:
    rows, known = [], figures.columns()
    for key, value in kept.metrics.items():
        if isinstance(value, int | float) and key not in ("epoch", "step"):
            name = known[key].words if key in known else f"`{key}`"
            rows.append(f"| {name} | {value:.4f} | {_interval(kept, key)} |")
    if not rows:
        return "The checkpoint has no metrics.\n"
    ids = kept.validation.get("ids")
    count = f", {len(ids)} images" if ids else ""
    note = (
        f"Measured on the validation split{count}, which also chose the best epoch. So the values are optimistic, most "
        "of all with few images. Intervals come from a bootstrap over the images. Without mistakes there is no "
        "interval: after N correct images up to 3/N of new images may be wrong (the rule of three).\n"
    )
    return "\n".join(["| metric | value | 95 % interval |", "| --- | --- | --- |", *rows, "", note])


def _interval(kept: checkpoint.Checkpoint, key: str) -> str:
    """The interval of a macro F1, if the checkpoint has its probabilities."""
    stored = {figures.F1.column(): "probabilities", figures.F1.column("corrupted"): "corrupted"}
    probabilities = kept.validation.get(stored.get(key, ""))
    if probabilities is None:
        return "–"
    predicted, targets = probabilities.argmax(1).numpy(), kept.validation["targets"].numpy()
    return intervals.in_table(intervals.interval(targets, predicted, len(kept.class_names)), kept.metrics[key], 4)


def _classes(kept: checkpoint.Checkpoint) -> str:
    named = enumerate(zip(kept.class_names, kept.labels, strict=True))
    rows = [
        f"| {row} | {name.replace('|', '&#124;')} | {label.replace('|', '&#124;')} |" for row, (name, label) in named
    ]
    head = ["| output | class | label in the data |", "| --- | --- | --- |"]
    if kept.validation:
        targets, predicted = kept.validation["targets"].numpy(), kept.validation["probabilities"].argmax(1).numpy()
        counts = figures.count(targets, predicted, len(kept.class_names))
        bounds = intervals.class_intervals(targets, predicted, len(kept.class_names))
        head = [head[0] + " validation images | F1 | 95 % interval |", head[1] + " --- | --- | --- |"]
        rows = [
            f"{row} {count:.0f} | {f'{value:.3f} | {intervals.in_table(sure, value)}' if count else '– | –'} |"
            for row, count, value, sure in zip(rows, counts.labelled, figures.class_f1(counts), bounds, strict=True)
        ]
    return "\n".join([*head, *rows, ""])


def _calibration(kept: checkpoint.Checkpoint) -> str:
    if not kept.calibration:
        return "Not calibrated: the probabilities are the softmax of the logits.\n"
    text = (
        f"Probabilities are softmax(logits / {kept.temperature:.4g}). The temperature was fitted on validation images."
    )
    if "ece" in kept.calibration and "ece_calibrated" in kept.calibration:
        before, after = kept.calibration["ece"], kept.calibration["ece_calibrated"]
        text += f" Expected calibration error on the same images: {before:.4f} before, {after:.4f} after."
    return text + "\n"


def _limits(kept: checkpoint.Checkpoint, made: Export) -> str:
    lines = [
        "The validation images are from the same data set as the training images"
        + (
            ". The metrics are for clean images and corrupted copies. The corruption simulates rotated, blurred and "
            "photographed pages; it is not a sample of your pages."
            if figures.F1.column("corrupted") in kept.metrics
            else ". Rotated, blurred, cropped and photographed pages, and pages from other sources, were not measured. "
            "Expect lower metrics for them."
        ),
        "The model knows only the classes above. A page of another kind gets one of them, perhaps with a high "
        "probability.",
        f"The export was compared with its checkpoint on {made.check.source}. The probabilities differ by at most "
        f"{made.check.difference:.1e} (allowed: {made.check.allowed:g}), in float32 on a CPU"
        + (", by onnxruntime's CPU provider" if made.to == "onnx" else "")
        + ". Not tested: GPUs (including Apple's), other runtimes, lower precision and quantisation.",
    ]
    if made.check.varies:
        lines.append(
            "The preprocessing has a random part, as in validation: its result for a page is slightly different each "
            "time. `albumentations.Compose(steps, seed=0)` repeats one sequence."
        )
    return "\n".join(f"- {line}" for line in lines) + "\n"


def _origin(kept: checkpoint.Checkpoint, made: Export) -> str:
    config = kept.settings
    facts = {
        "configuration": ", ".join(f"{key}={value}" for key, value in config.choices.items() if key != "model"),
        "seed": f"{config.seed}; of the split: {config.data.split_seed}",
        "epoch, step": ", ".join(str(kept.metrics[key]) for key in ("epoch", "step") if key in kept.metrics),
        "fingerprint of the data": kept.provenance.get("data_fingerprint"),
        "fingerprint of the split": kept.validation.get("split_fingerprint"),
        "git commit": kept.provenance.get("git_sha"),
        "trained with": _versions(kept.versions),
        "exported with": _versions(checkpoint.versions() | _exporters(made.to)),
        "SHA-256 of the checkpoint": f"`{made.checkpoint_sha256}`",
        f"SHA-256 of `{made.file}`": f"`{made.sha256}`",
    }
    rows = [f"| {name} | {value} |" for name, value in facts.items() if value]
    return "\n".join(["| what | value |", "| --- | --- |", *rows, ""])


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _exporters(to: str) -> dict[str, str]:
    from importlib.metadata import version

    names = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "safetensors": ("safetensors",)}.get(to, ())
    return {name: version(name) for name in names}


def _configuration(kept: checkpoint.Checkpoint) -> str:
    return yaml.safe_dump(_public(kept.config), sort_keys=False, allow_unicode=True, width=110)


def _public(value: Any) -> Any:
    """Settings without those of the machine. Of a file path only the name."""
    if isinstance(value, dict):
        return {key: _public(part) for key, part in value.items() if key not in HIDDEN}
    if isinstance(value, list):
        return [_public(part) for part in value]
    if isinstance(value, str) and value.startswith(("/", "~", "..")):
        return Path(value).name
    return value
