"""Augmentations of our own: a file for each. Every public class in a file here can be named in a configuration's lists,
with the arguments of its `__init__`, beside albumentations' own:

    class InkStain(A.ImageOnlyTransform):
        any_resolution = True  # it looks at colours alone: the small page will do (see trainer.augment.merged)

        def __init__(self, darkness: float = 0.5, p: float = 0.5) -> None: ...

It draws from `self.py_random` and `self.random_generator` alone, which belong to the sample. The names are read from
the source (`trainer.config.keys.own_augmentations`), so that a configuration is checked without importing any of it.
"""

from __future__ import annotations

import importlib
from typing import Any

from trainer.config.keys import own_augmentations


def classes() -> dict[str, type[Any]]:
    """The augmentations of this folder by name."""
    own = own_augmentations()
    return {name: getattr(importlib.import_module(f"{__name__}.{each.file}"), name) for name, each in own.items()}
