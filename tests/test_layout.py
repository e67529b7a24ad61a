"""Where things may stand: no crowded folder, no module beside the rooms, no circle of imports. `make lint` keeps the
order of the rooms."""

from __future__ import annotations

from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("launcher", "trainer")
MOST_MODULES = 15


@pytest.mark.parametrize("package", PACKAGES)
def test_a_folder_has_few_modules(package: str) -> None:
    folders = {path.parent for path in (ROOT / package).rglob("*.py")}
    sizes = {str(f.relative_to(ROOT)): len([p for p in f.glob("*.py") if p.name != "__init__.py"]) for f in folders}
    assert {folder: size for folder, size in sizes.items() if size > MOST_MODULES} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_has_only_rooms_at_its_root(package: str) -> None:
    assert {path.name for path in (ROOT / package).glob("*.py")} == {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_modules_import_each_other_in_a_circle(package: str) -> None:
    """Nor inside a function, nor for types alone: grimp reads every import statement."""
    graph = grimp.build_graph(package, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert circles(imports) == set()


def test_circles_are_found() -> None:
    imports = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a", "e"}, "e": set[str]()}
    assert circles(imports) == {frozenset("bc")}


def circles(imports: dict[str, set[str]]) -> set[frozenset[str]]:
    """Groups of modules of which each leads to each other one."""
    reached = {module: _reached(imports, module) for module in imports}
    return {
        frozenset(other for other in reached[module] if module in reached[other])
        for module in imports
        if module in reached[module]
    }


def _reached(imports: dict[str, set[str]], start: str) -> set[str]:
    waiting, seen = list(imports[start]), set[str]()
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += imports[module]
    return seen
