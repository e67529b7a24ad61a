"""Text in pictures: fonts for names in any script, and numbers with a legend for names that no font can draw."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import matplotlib
from matplotlib import font_manager

from trainer.base.files import write_text

logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it reports every font that is no exact match
DEFAULT = "DejaVu Sans"
"""matplotlib's own font. It has Latin, Greek, Cyrillic and more, but no CJK."""
FAMILIES = (
    *("Noto Sans CJK KR", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK TC", "Noto Sans CJK HK"),
    *("Noto Sans KR", "NanumGothic", "Nanum Gothic", "NanumBarunGothic", "Malgun Gothic", "Apple SD Gothic Neo"),
    *("AppleGothic", "Noto Sans JP", "Hiragino Sans", "Yu Gothic", "Noto Sans SC", "PingFang SC", "PingFang HK"),
    *("Microsoft YaHei", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Arial Unicode MS", "UnDotum", "Baekmuk Gulim"),
)
"""Fonts for Korean, Chinese and Japanese of common systems, in the order of preference."""
PACKAGES = ("noto_cjk_sans_otc", "koreanize_matplotlib")
"""Python packages that contain fonts for these. They are not imported."""
ADVICE = "pip install noto-cjk-sans-otc, or install a font of the system, such as Debian's fonts-noto-cjk"


class Lettering:
    """The names in the pictures of one command: as they are, or as numbers like [3] if no font can draw them."""

    def __init__(self, names: Iterable[str]) -> None:
        self.missing = prepare(names)
        self.numbers: dict[str, str] = {}
        """Name → its number in the pictures."""

    def __call__(self, name: str) -> str:
        if self.missing.isdisjoint(name):
            return name
        return self.numbers.setdefault(name, f"[{len(self.numbers) + 1}]")

    def write_legend(self, path: Path) -> None:
        """Write the names of the numbers into `path` and print one note. Without numbers remove an earlier legend."""
        if not self.numbers:
            path.unlink(missing_ok=True)
            return
        write_text(path, "".join(f"{number}\t{name}\n" for name, number in self.numbers.items()))
        some = ", ".join(f"{number} {name}" for name, number in list(self.numbers.items())[:3])
        more = ", …" if len(self.numbers) > 3 else ""
        print(f"note: no font has all characters; the pictures have numbers for names: {some}{more} ({path}); {ADVICE}")


def prepare(texts: Iterable[str]) -> frozenset[str]:
    """Let matplotlib draw `texts` with the fonts of this machine. Returns the characters that no font has."""
    missing = {c for text in texts for c in text if not c.isascii() and c.isprintable()}
    families = [family for family in matplotlib.rcParams["font.family"] if family != "sans-serif"] or [DEFAULT]
    for family in families:
        missing -= _drawn(family, missing)
    if missing:
        for family in _candidates():
            if drawn := _drawn(family, missing):
                families.append(family)
                missing -= drawn
            if not missing:
                break
        matplotlib.rcParams["font.family"] = families
    return frozenset(missing)


def _drawn(family: str, characters: Iterable[str]) -> set[str]:
    """Those of the characters that the font has. Empty if there is no such font, or if it cannot be read."""
    try:
        path = font_manager.findfont(family, fallback_to_default=False, rebuild_if_missing=False)
        font = font_manager.get_font(path)
        return {c for c in characters if font.get_char_index(ord(c))}
    except (ValueError, OSError, RuntimeError):
        return set()


def _candidates() -> Iterator[str]:
    """Fonts that may have the characters: the known ones of this machine, those of Python packages, then all others."""
    known = {entry.name for entry in font_manager.fontManager.ttflist}
    yield from (family for family in FAMILIES if family in known)
    yield from _new_on_this_machine(known)
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for folder in spec.submodule_search_locations or () if spec is not None else ():
            files = sorted(path for path in Path(folder).rglob("*Regular*") if path.suffix in (".ttf", ".otf", ".ttc"))
            yield from _added(files or sorted(Path(folder).rglob("*Gothic.ttf")))
    yield from sorted(known - set(FAMILIES) - {DEFAULT})


def _new_on_this_machine(known: Iterable[str]) -> Iterator[str]:
    """Fonts for CJK that were installed after matplotlib listed the fonts."""
    listed = {entry.fname for entry in font_manager.fontManager.ttflist}
    names = tuple(family.replace(" ", "").lower()[:10] for family in FAMILIES)
    files = [path for path in font_manager.findSystemFonts() if path not in listed]
    yield from _added(sorted(path for path in map(Path, files) if path.stem.lower().startswith(names)))


def _added(paths: Iterable[Path]) -> Iterator[str]:
    """Tell matplotlib about font files. Their families; a collection (.ttc) has several."""
    manager = font_manager.fontManager
    for path in paths:
        before = len(manager.ttflist)
        try:
            manager.addfont(path)
        except (OSError, RuntimeError, ValueError):
            continue
        families = {entry.name for entry in manager.ttflist[before:]}
        yield from sorted(
            families, key=lambda name: (FAMILIES.index(name) if name in FAMILIES else len(FAMILIES), name)
        )
