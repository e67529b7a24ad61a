"""Export a checkpoint for use without the trainer: ONNX, a torch.export program, or safetensors for timm.

After writing, the export is read again from its files and compared with the checkpoint on real pages.
"""

from __future__ import annotations

import io
import json
import logging
import os
import random
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import albumentations
import numpy as np
import timm
import torch
from torch import nn

from trainer.augment.pipeline import Augmentation
from trainer.base.activity import doing
from trainer.base.errors import ConfigError, DataError, TrainerError, nearest
from trainer.base.files import check_folder, settle, sha256, write_json, write_text
from trainer.base.plural import counted
from trainer.data import drawn
from trainer.export import card
from trainer.images import examined, read_page
from trainer.images.decode import Limit, decode
from trainer.images.files import finder
from trainer.models import build
from trainer.models.checkpoint import Checkpoint
from trainer.models.checkpoint import load as load_checkpoint
from trainer.scores.calibration import tempered

TOLERANCE = 1e-4
"""Largest allowed difference from the checkpoint's probabilities."""

CARRIED = {"fp32": 0.005, "bf16": 0.04, "fp16": 0.04}
"""Allowed difference from the probabilities of the validation, by its number format: mean over images of the largest
difference. For 62 real scans it was 0.08 if the pages were read otherwise, and 0.008 because of bf16 (0.09 for one
page). On a GPU fp32 is TF32."""

OPSET = 20
"""ONNX opset: the exporter's default, and the first with GELU as one operator."""

ABOUT, CARD, READER, BUILDING = "preprocessing.json", "README.md", "read_page.py", ".export-"
FORMAT = 2

Run = Callable[[torch.Tensor], torch.Tensor]
"""uint8 images (N, 3, H, W) → float32 probabilities (N, classes)."""


class Classifier(nn.Module):
    """A checkpoint's model from prepared uint8 images to calibrated probabilities."""

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float], temperature: float) -> None:
        super().__init__()
        self.normalized = build.Normalized(net, tuple(mean), tuple(std), channels_last=False)
        self.temperature = temperature

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (N, 3, H, W) → float32 (N, classes): softmax(logits / temperature)."""
        logits: torch.Tensor = self.normalized(images)
        return (logits / self.temperature).softmax(1)


@dataclass(frozen=True)
class Format:
    """One format: write it into a folder, and read it from the folder. `read` uses only the folder."""

    file: str
    write: Callable[[Classifier, Checkpoint, Path], None]
    read: Callable[[Path], Run]
    more_files: tuple[str, ...] = ()
    """Other files that `write` may create."""


@dataclass(frozen=True)
class CheckedPages:
    """Pages for the check: their files, and their images prepared as in validation, uint8 (N, 3, H, W)."""

    files: list[Path | bytes]
    """Path, or the content of a file."""
    images: torch.Tensor
    carried: torch.Tensor | None
    """The probabilities (N, classes) of the validation, with the temperature. None for drawn pages."""
    source: str
    where: str
    """The data folder, or the reason for drawn pages. For the terminal, not for the card."""
    varies: bool
    """Whether the preprocessing of a page is random."""

    @property
    def words(self) -> str:
        return f"{self.source}{self.where}"


def export(
    path: Path,
    to: str,
    output: Path,
    root: Path | None = None,
    images: int = 32,
    batch_size: int = 8,
    force: bool = False,
) -> card.Check:
    """Write the checkpoint at `path` as `to` (a key of FORMATS), preprocessing.json and README.md into `output`.

    Checks the export on up to `images` validation images of `root`, in batches of `batch_size` and of one, and by the
    lines of its card with the probabilities that the checkpoint carries. Without `root` it uses drawn pages. `force`
    replaces an earlier export. Raises ConfigError, DataError, and TrainerError if a probability differs by more than
    TOLERANCE or CARRIED; then it leaves no files.
    """
    if to not in FORMATS:
        raise ConfigError(f"--to {to}: unknown format; {nearest(to, FORMATS)}")
    _check_output(output, force)
    checkpoint = load_checkpoint(path)
    _refuse_own(checkpoint, path)
    config, about = checkpoint.settings, _about(checkpoint, to)
    size, classes = checkpoint.preprocessing["img_size"], len(checkpoint.class_names)
    bare = build.restore(config.model, classes, size, checkpoint.state_dict)
    net = Classifier(
        bare, checkpoint.preprocessing["mean"], checkpoint.preprocessing["std"], checkpoint.temperature
    ).eval()
    pages = check_pages(checkpoint, root, images)
    print(f"{config.model.name}, {size} px, {counted(classes, 'class')} → {to}")
    written = FORMATS[to]
    with _building(output) as folder:
        write_json(folder / ABOUT, about)
        write_text(folder / READER, Path(read_page.__file__).read_text(encoding="utf-8"))
        with doing(f"writing {written.file} and comparing it with the checkpoint"), _quiet():
            written.write(net, checkpoint, folder)
            run = written.read(folder)
            difference = _difference(net, run, pages.images, batch_size)
            by_card = None if pages.varies else _by_the_card(folder, card.lines(to, size), pages.files)
        check = _compared(checkpoint, net, pages, difference, by_card)
        _refuse_wrong(check, pages, f"{path}: {to}", [name for name in FORMATS if name != to])
        exported = card.Export(
            to=to,
            file=written.file,
            parameters=sum(p.numel() for p in bare.parameters()),
            size=(folder / written.file).stat().st_size,
            sha256=sha256(folder / written.file),
            checkpoint_sha256=sha256(path),
            check=check,
        )
        write_text(folder / CARD, card.render(checkpoint, exported))
        files = sorted(file.name for file in folder.iterdir())
    most = f"at most {check.difference:.1e} (allowed: {check.allowed:g})"
    print(f"checked on {pages.words}: probabilities differ by {most}")
    if check.carried is not None:
        print(
            f"by the lines of its card, {check.carried.same_class} of {counted(check.images, 'image')} "
            f"get{'s' * (check.carried.same_class == 1)} the class of the "
            f"validation ({check.carried.precision}); probabilities differ by {check.carried.mean:.1e} on average "
            f"(allowed: {check.carried.allowed:g}), and {check.carried.largest:.1e} at most.{check.carried.other_class}"
        )
    beside = ", ".join(name for name in files if name != written.file)
    print(f"{output / written.file} ({exported.size / 1e6:.1f} MB), with {beside}")
    return check


def _refuse_own(checkpoint: Checkpoint, path: Path) -> None:
    """Raises ConfigError if the preprocessing needs the trainer."""
    names = {entry if isinstance(entry, str) else next(iter(entry)) for entry in checkpoint.preprocessing["transforms"]}
    own = sorted(name for name in names if not hasattr(albumentations, name))
    if own:
        raise ConfigError(
            f"{path}: data.val_transforms has {', '.join(own)}, which albumentations does not have; an export without "
            "the trainer cannot prepare its pages"
        )


def _compared(
    checkpoint: Checkpoint,
    net: Classifier,
    pages: CheckedPages,
    difference: float,
    by_card: torch.Tensor | None,
) -> card.Check:
    """The result of the check, from the largest difference of the models and the probabilities by the card's lines."""
    carried = None
    if by_card is not None:
        with torch.inference_mode():
            ours = torch.cat([net(pages.images[row : row + 1]) for row in range(len(pages.images))])
        difference = float(np.maximum(difference, float((by_card - ours).abs().max())))  # NaN if one is
        if pages.carried is not None:
            largest, precision = (by_card - pages.carried).abs().max(1).values, _precision(checkpoint)
            others = by_card[by_card.argmax(1) != pages.carried.argmax(1)].sort(1, descending=True).values
            carried = card.Carried(
                precision=precision,
                same_class=int((by_card.argmax(1) == pages.carried.argmax(1)).sum()),
                mean=float(largest.mean()),
                largest=float(largest.max()),
                allowed=CARRIED.get(precision, CARRIED["bf16"]),
                margin=float((others[:, 0] - others[:, 1]).max()) if len(others) else None,
            )
    return card.Check(len(pages.files), pages.source, difference, TOLERANCE, carried, pages.varies)


def _precision(checkpoint: Checkpoint) -> str:
    """The number format of the validation whose probabilities the checkpoint carries."""
    asked = checkpoint.settings.training.precision
    known = checkpoint.provenance
    return known.get("val_precision", known.get("precision", "unknown" if asked == "auto" else asked))


def _refuse_wrong(check: card.Check, pages: CheckedPages, what: str, others: Sequence[str]) -> None:
    """Raises TrainerError if the export differs too much from its checkpoint."""
    if not check.difference <= check.allowed:  # also True for NaN
        raise TrainerError(
            f"{what}: the probabilities differ from the checkpoint's by {check.difference:.2g} on {pages.words}, "
            f"more than {check.allowed:g}; the export was removed; try --to {' or '.join(others)}"
        )
    if check.carried is not None and not check.carried.mean <= check.carried.allowed:
        raise TrainerError(
            f"{what}: by the lines of its card, the probabilities of {pages.words} differ from those of the "
            f"validation in training by {check.carried.mean:.2g} on average, more than {check.carried.allowed:g}, and "
            f"{check.images - check.carried.same_class} of {check.images} get another class; the export was removed. "
            "Have these files changed since the training? Without a data folder, drawn pages are compared instead"
        )


def _by_the_card(folder: Path, code: str, files: Sequence[Path | bytes]) -> torch.Tensor:
    """The probabilities (N, classes) that the card's `code` gives for `files`, run as a user does: inside `folder`."""
    names: dict[str, Any] = {}
    here, folder, reader = Path.cwd(), folder.resolve(), sys.modules.pop(Path(READER).stem, None)
    files = [file.resolve() if isinstance(file, Path) else file for file in files]
    sys.path.insert(0, str(folder))
    caches, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # no __pycache__ among the export's files
    os.chdir(folder)
    try:
        exec(compile(code, CARD, "exec"), names)
        opened = (io.BytesIO(file) if isinstance(file, bytes) else file for file in files)
        return torch.from_numpy(np.stack([names["classify"](file) for file in opened]))
    finally:
        os.chdir(here)
        sys.dont_write_bytecode = caches
        sys.path.remove(str(folder))
        sys.modules.pop(Path(READER).stem, None)
        if reader is not None:
            sys.modules[Path(READER).stem] = reader


def check_pages(checkpoint: Checkpoint, root: Path | None, count: int) -> CheckedPages:
    """Up to `count` of the checkpoint's validation images in `root`, spread over the split and prepared as in
    validation. Drawn pages if `root` is None or has none of them. Raises DataError for an unreadable image."""
    about, carried = checkpoint.preprocessing, None
    view = Augmentation(about["transforms"], "data.val_transforms", about["img_size"], checkpoint.settings.seed)
    ids = list(checkpoint.validation.get("ids", ()))
    known = finder(root) if root else None
    found = [(row, file) for row, i in enumerate(ids) if known and (file := known.find(i)[0]) is not None]
    found = [found[round(place)] for place in np.linspace(0, len(found) - 1, min(count, len(found)))]
    files: list[Path | bytes] = [file for _, file in found]
    if found:
        faults = [f"{found[place][1]}: {reason}" for place, reason in examined.unreadable([file for _, file in found])]
        if faults:
            raise DataError("\n".join(faults))
        rows = torch.tensor([row for row, _ in found])
        carried = tempered(checkpoint.validation["probabilities"][rows], checkpoint.temperature)
        source, where = counted(len(files), "validation image"), f" of {root}"
    else:
        files = _drawn(count)
        source = f"{counted(count, 'drawn page')}, not {'a real one' if count == 1 else 'real ones'}"
        where = " (no data folder)" if root is None else f" ({root} has none of the validation images)"
    limit = Limit.of(about["transforms"]) if about.get("fast") else None
    pages = [decode(io.BytesIO(file) if isinstance(file, bytes) else file, limit) for file in files]
    prepared = [view(page, 0, row) for row, page in enumerate(pages)]
    varies = any((view(page, 1, row) != prepared[row]).any() for row, page in enumerate(pages[:4]))
    images = torch.from_numpy(np.stack(prepared)).permute(0, 3, 1, 2).contiguous()
    return CheckedPages(files, images, carried, source, where, varies)


def _drawn(count: int) -> list[Path | bytes]:
    """Drawn pages as JPEG files."""
    chance, kinds, files = random.Random(0), list(drawn.KINDS), list[Path | bytes]()
    for number in range(count):
        file = io.BytesIO()
        drawn.draw(kinds[number % len(kinds)], chance).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def _about(checkpoint: Checkpoint, to: str) -> dict[str, Any]:
    """The content of preprocessing.json."""
    size, classes = checkpoint.preprocessing["img_size"], len(checkpoint.class_names)
    entries = [e if isinstance(e, dict) else {e: {}} for e in checkpoint.preprocessing["transforms"]]
    limit = Limit.of(checkpoint.preprocessing["transforms"]) if checkpoint.preprocessing.get("fast") else None
    inside = to != "safetensors"
    return {
        "format": FORMAT,
        "input": {
            "name": "images",
            "dtype": "uint8" if inside else "float32",
            "shape": ["batch", 3, size, size],
            "channels": "RGB",
            "normalisation": "inside the model"
            if inside
            else "(image / 255 - mean) / std, to be done before the model",
        },
        "output": {
            "name": "probabilities" if inside else "logits",
            "dtype": "float32",
            "shape": ["batch", classes],
            "softmax": "inside the model" if inside else "softmax(logits / temperature), to be done after the model",
        },
        "img_size": size,
        "read_page": {} if limit is None else {"longest": limit.longest, "interpolation": limit.interpolation},
        "transforms": [
            {"name": n, "arguments": arguments or {}} for entry in entries for n, arguments in entry.items()
        ],
        "mean": checkpoint.preprocessing["mean"],
        "std": checkpoint.preprocessing["std"],
        "temperature": checkpoint.temperature,
        "class_names": checkpoint.class_names,
        "labels": checkpoint.labels,
    }


def _program(net: Classifier, checkpoint: Checkpoint) -> torch.export.ExportedProgram:
    """Trace with two images: torch.export would treat a batch size of one as a constant."""
    size = checkpoint.preprocessing["img_size"]
    batch = (torch.zeros(2, 3, size, size, dtype=torch.uint8),)
    program = torch.export.export(net, batch, dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it has file names of this machine
    return program


def _write_onnx(net: Classifier, checkpoint: Checkpoint, folder: Path) -> None:
    import onnxruntime  # noqa: F401  # fail before the work if a package is missing
    import onnxscript  # noqa: F401

    program = torch.onnx.export(
        _program(net, checkpoint),
        dynamo=True,
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes=({0: "batch"},),
        opset_version=OPSET,
        verbose=False,
    )
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)
    program.save(str(folder / "model.onnx"))


def _read_onnx(folder: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()  # the default pins one thread to each core of the machine
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["probabilities"], {"images": images.numpy()})[0])


def _write_torch_export(net: Classifier, checkpoint: Checkpoint, folder: Path) -> None:
    content = io.BytesIO()  # torch's own writer ends the process if the disk is full or the path is not UTF-8
    torch.export.save(_program(net, checkpoint), content)
    (folder / "model.pt2").write_bytes(content.getbuffer())


def _read_torch_export(folder: Path) -> Run:
    with (folder / "model.pt2").open("rb") as file:
        run: Run = torch.export.load(file).module()
    return run


def _write_safetensors(net: Classifier, checkpoint: Checkpoint, folder: Path) -> None:
    """Write model.safetensors and config.json, as in timm's `local-dir:` and hub formats."""
    bare, preprocessing = net.normalized.model, checkpoint.preprocessing
    size = preprocessing["img_size"]
    about = {"mean": preprocessing["mean"], "std": preprocessing["std"], "crop_pct": 1.0, "input_size": (3, size, size)}
    more = {"label_names": checkpoint.class_names, "pretrained_cfg": about}
    arguments = build.size_arguments(checkpoint.settings.model.name, size)
    try:
        timm.models.save_for_hf(bare, str(folder), more, arguments, safe_serialization=True)
    except Exception as error:  # safetensors has an error of its own for system errors
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(folder)) from None
        raise


def _read_safetensors(folder: Path) -> Run:
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    bare = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return Classifier(bare, about["mean"], about["std"], about["temperature"]).eval()


FORMATS = {
    "onnx": Format("model.onnx", _write_onnx, _read_onnx, ("model.onnx.data",)),  # the weights, if they are over 2 GB
    "safetensors": Format("model.safetensors", _write_safetensors, _read_safetensors, ("config.json",)),
    "torch_export": Format("model.pt2", _write_torch_export, _read_torch_export),
}


def _difference(net: Classifier, run: Run, images: torch.Tensor, batch_size: int) -> float:
    """The largest absolute difference between probabilities, for batches of one and of `batch_size` images."""
    batches = [images[:1], *(images[start : start + batch_size] for start in range(0, len(images), batch_size))]
    with torch.inference_mode():
        return float(torch.stack([(net(batch) - run(batch)).abs().max() for batch in batches]).max())


def _check_output(output: Path, force: bool) -> None:
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{output}: is a file; give a folder with --output DIR")
    check_folder(output)
    killed = _unfinished(output)
    if output.is_dir() and any(path not in killed for path in output.iterdir()):
        mine = (output / ABOUT).is_file() or killed  # a process may die while it moves files
        if not mine:
            raise ConfigError(f"{output}: the folder is not empty and has no export; give another with --output DIR")
        if not force:
            raise ConfigError(
                f"{output}: has an export already; replace it with --force, or give another folder with --output DIR"
            )


def _unfinished(output: Path) -> list[Path]:
    """The folders of killed exports in `output`."""
    return [path for path in output.glob(f"{BUILDING}*") if path.is_dir()]


@contextmanager
def _building(output: Path) -> Iterator[Path]:
    """A temporary folder inside `output`. After the block its files move to `output`; after an error they are removed.

    It is inside `output`, because `output` may be a container's mount and its parent not writable. The function also
    removes the folders of killed exports.
    """
    missing = [folder for folder in (output, *output.parents) if not folder.exists()]
    output.mkdir(parents=True, exist_ok=True)
    for killed in _unfinished(output):
        shutil.rmtree(killed, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=BUILDING, dir=output))
    try:
        yield folder
        files = sorted(folder.iterdir())
        for file in files:
            settle(file, output / file.name)
        known = {
            ABOUT,
            CARD,
            READER,
            *(name for written in FORMATS.values() for name in (written.file, *written.more_files)),
        }
        for name in known - {file.name for file in files}:
            (output / name).unlink(missing_ok=True)  # a file of the replaced format
    except OSError as error:
        if error.errno is not None and (error.filename is None or str(error.filename).startswith(str(folder))):
            error.filename, error.filename2 = str(output), None  # libraries lose the name, or name the temporary folder
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in missing:
            if not any(parent.iterdir()):
                parent.rmdir()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the messages of the exporters."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    before = [logging.getLogger(name).level for name in names]
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in zip(names, before, strict=True):
            logging.getLogger(name).setLevel(level)
