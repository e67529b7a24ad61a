"""docs/architecture.svg: the rooms of both packages, and which room imports which (`make docs`).

Rooms, their order and their sentences are read from the code: folders, the layers of import-linter, docstrings.
"""

from __future__ import annotations

import ast
import textwrap
import tomllib
from dataclasses import dataclass
from html import escape
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PICTURE = REPOSITORY / "docs" / "architecture.svg"
PACKAGES = ("launcher", "trainer")
BOX_WIDTH, BOX_HEIGHT, GAP = 400, 48, 14
MARGIN, TOP, MIDDLE = 220, 70, 190
COLORS = ("#3b6ea5", "#b3541e", "#3d7f5f", "#8a4f9e", "#a8892b", "#b03a5b", "#4f7d8c")


@dataclass(frozen=True)
class House:
    """The rooms of both packages, each from the highest down, and the arrows between them."""

    rooms: dict[str, list[str]]
    arrows: set[tuple[str, str]]
    """(importing room, imported room), like ("launcher.cli", "launcher.job")."""


def read_house() -> House:
    """The rooms and imports of the code as it is now, imports inside functions and for types included."""
    arrows = set()
    for package in PACKAGES:
        for path in (REPOSITORY / package).glob("*/**/*.py"):
            room = f"{package}.{path.relative_to(REPOSITORY / package).parts[0]}"
            for module in _imported(path):
                words = module.split(".")
                if words[0] in PACKAGES and len(words) > 1 and (REPOSITORY / words[0] / words[1]).is_dir():
                    arrows.add((room, ".".join(words[:2])))
    return House(
        {package: _order(package) for package in PACKAGES}, {arrow for arrow in arrows if arrow[0] != arrow[1]}
    )


def _imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


def _order(package: str) -> list[str]:
    """The package's rooms in the order that import-linter keeps, the highest first."""
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    for contract in settings["tool"]["importlinter"]["contracts"]:
        if contract["type"] == "layers" and contract["containers"] == [package]:
            return [f"{package}.{name.strip()}" for layer in contract["layers"] for name in layer.split("|")]
    raise LookupError(f"no layers of {package} in pyproject.toml")


def sentence(room: str) -> str:
    """The first paragraph of the room's docstring, on one line."""
    text = (REPOSITORY / room.replace(".", "/") / "__init__.py").read_text(encoding="utf-8")
    return " ".join((ast.get_docstring(ast.parse(text)) or "").partition("\n\n")[0].split())


def table(package: str) -> str:
    """The package's rooms as a Markdown table."""
    lines = ["| room | what is inside |", "| --- | --- |"]
    for room in read_house().rooms[package]:
        folder = room.replace(".", "/")
        lines.append(f"| [`{folder}/`](../{folder}) | {sentence(room)} |")
    return "\n".join(lines)


def draw(house: House) -> str:
    """The picture as SVG: boxes from the highest room down, an arc for each import from one room to another."""
    places = {
        room: (MARGIN + column * (BOX_WIDTH + MIDDLE), TOP + row * (BOX_HEIGHT + GAP))
        for column, package in enumerate(PACKAGES)
        for row, room in enumerate(house.rooms[package])
    }
    width = 2 * MARGIN + 2 * BOX_WIDTH + MIDDLE
    height = TOP + max(map(len, house.rooms.values())) * (BOX_HEIGHT + GAP) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        "<defs>",
        *(
            f'<marker id="m{n}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" markerUnits="userSpaceOnUse" orient="auto">'
            f'<path d="M0 0 8 4 0 8z" fill="{color}"/></marker>'
            for n, color in enumerate(COLORS)
        ),
        "</defs>",
    ]
    for column, package in enumerate(PACKAGES):
        x = MARGIN + column * (BOX_WIDTH + MIDDLE) + BOX_WIDTH / 2
        parts.append(f'<text x="{x}" y="40" font-size="24" font-weight="bold" text-anchor="middle">{package}/</text>')
    parts += [_arrow(source, target, places) for source, target in sorted(house.arrows)]
    for room, (x, y) in places.items():
        parts.append(f'<g id="{room}"><rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" ')
        parts.append(f'fill="#f4f6f8" stroke="{_color(room, places)[1]}" stroke-width="1.5"/>')
        parts.append(
            f'<text x="{x + 10}" y="{y + 29}" font-size="15" font-weight="bold">{room.partition(".")[2]}</text>'
        )
        for n, line in enumerate(textwrap.wrap(sentence(room).partition(". ")[0].replace("`", "").rstrip("."), 46)[:3]):
            parts.append(f'<text x="{x + 104}" y="{y + 15 + 13 * n}" font-size="11">{escape(line)}</text>')
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def _color(room: str, places: dict[str, tuple[int, int]]) -> tuple[int, str]:
    number = list(places).index(room) % len(COLORS)
    return number, COLORS[number]


def _arrow(source: str, target: str, places: dict[str, tuple[int, int]]) -> str:
    """An arc beside the column, or a line between the columns; arrows that point up are red and thick."""
    number, color = _color(source, places)
    (x1, y1), (x2, y2) = places[source], places[target]
    y1, y2 = y1 + BOX_HEIGHT * 2 // 3, y2 + BOX_HEIGHT // 3
    style = f'fill="none" stroke="{color}" stroke-width="1.2" opacity="0.75" marker-end="url(#m{number})"'
    if x1 != x2:
        d = f"M{x1 + BOX_WIDTH} {y1} C{x1 + BOX_WIDTH + MIDDLE / 2} {y1} {x2 - MIDDLE / 2} {y2} {x2} {y2}"
    else:
        side = source.startswith("trainer")
        x = x1 + BOX_WIDTH if side else x1
        reach = (16 + 0.26 * abs(y2 - y1)) * (1 if side else -1)
        d = f"M{x} {y1} C{x + reach} {y1} {x + reach} {y2} {x} {y2}"
    if x1 == x2 and y2 < y1:
        style = style.replace(f'"{color}"', '"#e00000"').replace('"1.2"', '"3"')
    return f'<path id="{source}-{target}" d="{d}" {style}><title>{source} imports {target}</title></path>'
