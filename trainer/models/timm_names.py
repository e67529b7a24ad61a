"""The names of timm's models, read from its sources: importing timm takes seconds, and torch with it."""

from __future__ import annotations

import functools
import importlib.util
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from trainer.base.errors import ConfigError, nearest


def check(name: str) -> None:
    """Raises ConfigError where timm's sources do not even mention a model of this name; `build.check_name` is the one
    that knows for certain."""
    sources = _sources()
    model = name.split(".")[0].replace("-", "_")
    known = bool(model) and re.search(rf"\bdef {re.escape(model)}\(|['\"]{re.escape(model)}['\".]", sources)
    if not sources or ":" in name or known:
        return
    names = re.findall(r"^@register_model\s+def (\w+)\(", sources, re.M)
    try:
        of = f"timm {version('timm')}"
    except PackageNotFoundError:
        of = "timm"
    raise ConfigError(f"model.name={name}: {of} has no such model; {nearest(name, names)}")


@functools.cache
def _sources() -> str:
    """All of timm's model files; empty where timm is not installed."""
    spec = importlib.util.find_spec("timm")
    if spec is None or not spec.submodule_search_locations:
        return ""
    files = (Path(spec.submodule_search_locations[0]) / "models").glob("*.py")
    return "\n".join(file.read_text(encoding="utf-8") for file in sorted(files))
