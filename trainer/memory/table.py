"""The memory table of the launcher: the line of every model, device, size and precision."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

import timm

from trainer.config.compose import compose
from trainer.config.keys import option_names
from trainer.memory.estimate import estimate

SIZES = (384, 512, 768)
STEP = 32
DEVICES = ("cuda", "mps")


def rows(sizes: tuple[int, ...] = SIZES, models: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    """Rows for every model of the model group (or `models`), device, size and precision, with AdamW.

    The memory of a convolution grows with the square of the size, so a few sizes are enough. Attention is different:
    windows are padded (swin, up to 15 % beside that curve), and steps keep attention matrices. So models with a fixed
    input size, which have attention, get a row every `STEP` pixels.
    """
    for name in models or option_names("model"):
        for where in DEVICES:
            for size in _sizes(name, sizes):
                config = compose([f"model={name}", f"data.img_size={size}", f"device={where}"], "estimate")
                for precision, line in estimate(config).items():
                    yield {
                        "model": config.model.name,
                        "device": where,
                        "img_size": size,
                        "precision": precision,
                        "fixed_bytes": line.fixed,
                        "per_image_bytes": line.per_image,
                        "weights_bytes": line.weights,
                        "optimizer_bytes": line.optimizer,
                        "spared_bytes": line.spared,
                        "update_bytes": line.update,
                    }


def _sizes(name: str, sizes: tuple[int, ...]) -> list[int]:
    pretrained = timm.get_pretrained_cfg(compose([f"model={name}"]).model.name)
    dense = range(min(sizes), max(sizes) + 1, STEP) if pretrained is not None and pretrained.fixed_input_size else ()
    return sorted({*sizes, *dense})


def as_csv(table: list[dict[str, Any]]) -> str:
    """The rows in the launcher's format."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return out.getvalue()
