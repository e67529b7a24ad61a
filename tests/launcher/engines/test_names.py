"""An engine is a folder and a line: no other module of the launcher spells an engine's name, nor imports its folder."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.engines import registry

LAUNCHER = Path(registry.__file__).parents[1]
MODULES = sorted(
    path for path in LAUNCHER.rglob("*.py") if path.parent.parts[len(LAUNCHER.parts) :][:1] != ("engines",)
)
ALLOWED = {
    "cli/images.py": "docker",  # `build` and `images` are about that engine's images, and nothing else
}
"""Modules that may know one engine, and which."""


def names(text: str) -> Iterator[tuple[int, str]]:
    """Engines that a module spells, with the line: in identifiers, imports, and text that is nothing but a name with
    punctuation. Docstrings and help texts are sentences."""
    for node in ast.walk(ast.parse(text)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = re.findall(r"\w+", node.value)
            words = found if len(found) == 1 else []
        elif isinstance(node, ast.ImportFrom):
            words = [
                word for name in (node.module or "", *(alias.name for alias in node.names)) for word in parts(name)
            ]
        elif isinstance(node, ast.Import):
            words = [word for alias in node.names for word in parts(alias.name)]
        else:
            identifiers = (getattr(node, field, None) for field in ("id", "attr", "arg", "name"))
            words = [word for name in identifiers if isinstance(name, str) for word in parts(name)]
        yield from ((line, word.lower()) for word in words if word.lower() in registry.ENGINES)


def parts(identifier: str) -> list[str]:
    """The words of an identifier: `_SlurmSpec` → Slurm, Spec."""
    return re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", identifier)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(LAUNCHER).as_posix())
def test_only_engines_spell_an_engines_name(path: Path) -> None:
    allowed = ALLOWED.get(path.relative_to(LAUNCHER).as_posix())
    spelled = {f"line {line}: {name}" for line, name in names(path.read_text()) if name != allowed}
    assert not spelled, "ask launcher.engines.registry instead"


def test_a_name_is_found_wherever_it_is_spelled() -> None:
    text = "from launcher.engines.docker import x\nclass SlurmSpec: ...\nf(native=1)\ny == 'slurm'\nis_docker\nf'slurm.{x}'\n"
    assert sorted(names(text)) == [
        (1, "docker"), (2, "slurm"), (3, "native"), (4, "slurm"), (5, "docker"), (6, "slurm"),
    ]  # fmt: skip
    assert not list(names('"""For docker, or else native."""\nalternative = "--engine docker or slurm"\n'))
