"""Our own augmentations, one file each. A configuration can use every public class in these files, with the arguments
of its `__init__`, like an albumentations class:

    class InkStain(A.ImageOnlyTransform):
        any_resolution = True  # it changes only colours, so it can run on the small page (see trainer.augment.merged)

        def __init__(self, darkness: float = 0.5, p: float = 0.5) -> None: ...

It draws only from `self.py_random` and `self.random_generator`, which belong to the sample. The trainer reads the names
from the source (`trainer.config.keys.own_augmentations`), so it can check a configuration without these imports.
"""

from __future__ import annotations

import importlib
from typing import Any

from trainer.config.keys import own_augmentations


def classes() -> dict[str, type[Any]]:
    """The augmentations of this folder by name."""
    own = own_augmentations()
    return {name: getattr(importlib.import_module(f"{__name__}.{entry.file}"), name) for name, entry in own.items()}
