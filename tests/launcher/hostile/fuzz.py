"""Contents of files that a hostile trainer writes: random, seeded."""

from __future__ import annotations

import io
import json
import random
from typing import Any

import numpy as np

NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 0.5, -0.0, 1e308, -1e308, 10**400, -(10**30), 2**63, float("nan"), float("inf"),
    "", "high", "0.9", "NaN", "\x1b]0;title\x07", "\x9b31m", "\u202ecod.exe", "\ud800", "a\nb\tc\r", "x" * 5000, "=1+1",
    "../../etc/passwd", "/etc/shadow", [], {}, [[]], [None], [0, 1], [1, 0], [0.1, float("nan")], ["a", 1], {"a": {}},
    [{"checkpoint": "../001-a/best.ckpt"}], [{"checkpoint": 5}], [{"checkpoint": "x", "member": []}], ["a"] * 1000,
    [{"member": "m"}], {"checkpoint": "x"},
)  # fmt: skip
METRICS = (
    "val_f1", "val_f1_corrupted", "val_f1_mean", "val_accuracy", "val_loss", "val_f1_interval", "val_f1_mean_interval",
    "monitor", "score", "seconds", "epochs", "best_epoch", "params", "images_per_second", "members", "method",
    "why_no_val", "split_fingerprint", "class_names", "model", "data", "training", "img_size", "seed",
)  # fmt: skip
PROGRESS = (
    "time", "epoch", "epochs", "step", "steps", "images_per_second", "eta_seconds", "device", "device_memory_bytes",
    "best_f1", "first_step_time",
)  # fmt: skip
WHOLE = (
    b"", b"{", b"null", b"[]", b'"text"', b"5", b"NaN", b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"[" * 100_000,
    b'{"a":' * 50_000, b'{"val_f1": 1e999999}', b'{"epoch": 1' + b"0" * 5000 + b"}", b"\0" * 1000,
)  # fmt: skip


def text(chance: random.Random, keys: tuple[str, ...]) -> bytes:
    """A JSON text with some of these keys, or something that is none."""
    if chance.random() < 0.02:
        return chance.choice(WHOLE)
    valid = {"val_f1": 0.5, "epoch": 1, "epochs": 3, "seconds": 1.0}
    content = {key: value for key, value in valid.items() if chance.random() < 0.7}
    for key in chance.sample(keys, chance.randrange(1, len(keys))):
        content[key] = chance.choice(NASTY)
    encoded = json.dumps(content).encode()
    if chance.random() < 0.1:
        return encoded[: chance.randrange(len(encoded))]
    if chance.random() < 0.1:
        at = chance.randrange(len(encoded))
        return encoded[:at] + bytes([chance.randrange(256)]) + encoded[at + 1 :]
    return encoded


def predictions(chance: random.Random) -> bytes:
    """An archive of predictions with wrong arrays, or with wrong bytes."""
    arrays: dict[str, Any] = {
        "ids": np.array(["b", "a", "c"]),
        "targets": np.array([0, 1, 0]),
        "class_names": np.array(["x", "y"]),
        "probabilities": np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]], np.float32),
        "split_fingerprint": np.array("s"),
    }
    wrong = (
        np.array([]), np.array(5), np.array([0, 1, 9]), np.array([-1, 0, 0]), np.array([0.5, np.nan, np.inf]),
        np.full((3, 2), np.nan, np.float32), np.zeros((2, 3)), np.zeros((3, 0)), np.array(["x", "x"]),
        np.array([b"a", b"b", b"c"]), np.array([1 + 2j] * 3), np.zeros(3, "datetime64[s]"), np.array([True] * 3),
        np.array([(1, 2)], dtype=[("a", "i4"), ("b", "i4")]), np.array(["\x1b[31m"] * 3), np.array([2**63] * 3, "u8"),
    )  # fmt: skip
    for _ in range(chance.randrange(3)):
        arrays[chance.choice([*arrays, "corrupted", "folds_fingerprint"])] = chance.choice(wrong)
    if chance.random() < 0.2:
        del arrays[chance.choice(list(arrays))]
    file = io.BytesIO()
    np.savez(file, **arrays)
    content = bytearray(file.getvalue())
    if chance.random() < 0.6:
        for _ in range(chance.randrange(1, 8)):
            content[chance.randrange(len(content))] = chance.randrange(256)
    return bytes(content[: chance.randrange(len(content))] if chance.random() < 0.1 else content)
