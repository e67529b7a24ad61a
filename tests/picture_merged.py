"""`python -m tests.picture_merged FILE`: pages as the list of augmentations makes them, and below each the merged one.

The same draws, at 384 px from pages of about 500 × 540: what the eye can tell apart should be sharpness alone.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trainer.augment.pipeline import Augmentation
from trainer.config.compose import compose
from trainer.data import drawn

SIDE, SHOWN = 768, 256


def rows(name: str, count: int) -> list[Any]:
    """Two rows of pictures: as the list makes them, and merged."""
    config = compose([f"data={name}", f"data.img_size={SIDE}"]).data
    kinds = list(drawn.KINDS)
    pages = [np.asarray(drawn.draw(kinds[n], random.Random(n))) for n in range(count)]
    return [
        np.hstack(
            [_small(Augmentation(config.train_transforms, "x", SIDE, 4, merge)(p, 0, n)) for n, p in enumerate(pages)]
        )
        for merge in (False, True)
    ]


def _small(image: Any) -> Any:
    return np.pad(np.asarray(Image.fromarray(image).resize((SHOWN, SHOWN))), ((2, 2), (2, 2), (0, 0)))


if __name__ == "__main__":
    made = [row for name in ("baseline_aug", "document_aug") for row in rows(name, 6)]
    Image.fromarray(np.vstack(made)).save(Path(sys.argv[1]), quality=80)
