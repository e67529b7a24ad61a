"""The names that options of several commands take. They stand here so that a command line is checked before torch is
imported; a test holds them against the code that they name."""

from __future__ import annotations

METHODS = ("soft_voting", "hard_voting", "rank_averaging")
"""How the members of an ensemble vote."""
WEIGHTS = ("equal", "greedy")
"""How the members of an ensemble are weighed, where no numbers are given."""
OPTIMISED = "optimised"
"""Another search for weights, once. Accepted still, and greedy, which does as well on images that it did not see
(docs/bench/2026-11-30-ensemble-weights.json)."""
VIEWS = ("none", "light", "standard", "heavy")
"""Sets of views of test-time augmentation."""
FORMATS = ("onnx", "safetensors", "torch_export")
"""File formats of an export."""
