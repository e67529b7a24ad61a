"""The names of timm's models, read from its sources. Importing timm (with torch) takes seconds."""

from __future__ import annotations

import functools
import importlib.util
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from trainer.base.errors import ConfigError, nearest


def check(name: str) -> None:
    """Raises ConfigError if timm's sources do not contain the name. Only `build.check_name` is certain."""
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
    raise ConfigError(f"model.name={name}: {of} does not have this model; {nearest(name, names)}")


@functools.cache
def _sources() -> str:
    """The text of timm's model files. Empty if timm is not installed."""
    spec = importlib.util.find_spec("timm")
    if spec is None or not spec.submodule_search_locations:
        return ""
    files = (Path(spec.submodule_search_locations[0]) / "models").glob("*.py")
    return "\n".join(file.read_text(encoding="utf-8") for file in sorted(files))
