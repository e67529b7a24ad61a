"""Names for options of several commands, and a caveat of several reports. The names are here so that a command can
check them before it imports torch. A test compares them with the code."""

from __future__ import annotations

METHODS = ("soft_voting", "hard_voting", "rank_averaging")
"""Voting methods of an ensemble."""
WEIGHTS = ("equal", "greedy")
"""Weightings of an ensemble, besides numbers."""
OPTIMISED = "optimised"
"""An old weight search. It is still accepted and means greedy, which is as good on unseen images
(docs/bench/2026-11-30-ensemble-weights.json)."""
VIEWS = ("none", "light", "standard", "heavy")
"""Names of the view sets for test-time augmentation."""
FORMATS = ("onnx", "safetensors", "torch_export")
"""Export formats."""
GROUPED = "they assume independent images, but images of one group are similar"
"""Why intervals are too narrow if the data set has groups. Resampling takes single images."""
