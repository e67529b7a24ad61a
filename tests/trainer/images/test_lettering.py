"""Names in pictures: in Korean, Chinese and Japanese with any font that has them, else numbers with a legend."""

from __future__ import annotations

import importlib.util
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from tests.trainer.conftest import draw
from trainer.config.schema import DataConfig
from trainer.data import check
from trainer.images import gallery, lettering
from trainer.images.lettering import Lettering
from trainer.report import plots
from trainer.scores import label_errors, val_predictions
from trainer.scores.val_predictions import Validation

NAMES = ["송장", "領収書", "发票"]


@pytest.fixture(autouse=True)
def own_fonts() -> Iterator[None]:
    """Each test begins with matplotlib's own fonts alone, as on a machine without CJK fonts."""
    manager = font_manager.fontManager
    before, manager.ttflist = manager.ttflist, [e for e in manager.ttflist if e.name.startswith("DejaVu")]
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # an earlier test may have chosen fonts
        yield
    manager.ttflist = before


@pytest.fixture
def no_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lettering, "PACKAGES", ())
    monkeypatch.setattr(font_manager, "findSystemFonts", list)


def drawn(text: str) -> np.ndarray:
    """The pixels of a text. Characters without a glyph are all the same box."""
    figure = Figure(figsize=(2, 1))
    figure.text(0.1, 0.4, text)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


def test_a_font_of_a_python_package_draws_names_without_fonts_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    with pytest.raises(UserWarning, match="Glyph"):
        drawn("송장")
    assert lettering.prepare([*NAMES, "abc → é"]) == frozenset()
    pictures = [drawn(name) for name in ("송장", "견적", "领收", "領収", "かな")]
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)
    assert matplotlib.rcParams["font.family"][0] == "DejaVu Sans", "Latin letters look as before"


def test_fonts_of_the_system_go_first() -> None:
    spec = importlib.util.find_spec("noto_cjk_sans_otc")
    assert spec is not None and spec.submodule_search_locations
    file = next(Path(spec.submodule_search_locations[0]).glob("*.ttc"))
    entry = font_manager.FontEntry(fname=str(file), name="NanumGothic", weight=400)
    font_manager.fontManager.ttflist.append(entry)
    assert lettering.prepare(NAMES) == frozenset()
    assert matplotlib.rcParams["font.family"] == ["DejaVu Sans", "NanumGothic"]


def test_a_font_installed_after_matplotlib_listed_the_fonts_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec("noto_cjk_sans_otc")
    assert spec is not None and spec.submodule_search_locations
    file = next(Path(spec.submodule_search_locations[0]).glob("*.ttc"))
    monkeypatch.setattr(lettering, "PACKAGES", ())
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(file)])
    assert lettering.prepare(NAMES) == frozenset()


def validation(names: list[str]) -> Validation:
    targets = np.array([n % len(names) for n in range(60)])
    probabilities = np.eye(len(names), dtype=np.float32)[targets] * 0.9 + 0.1 / len(names)
    probabilities[0] = np.roll(probabilities[0], 1)
    return Validation([f"{names[t]}/쪽 {n}.png" for n, t in enumerate(targets)], targets, probabilities, names)


def test_without_a_font_pictures_have_numbers_and_a_legend(
    tmp_path: Path, no_fonts: None, capsys: pytest.CaptureFixture[str]
) -> None:
    known = validation([*NAMES, "form"])
    text = Lettering([*known.class_names, known.ids[0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = plots.confusion(known, text)
        gallery.save(figure, tmp_path / "matrix.png")
        labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
        figure, _ = plots.worst(known, [0], None, text)
        gallery.save(figure, tmp_path / "worst.png")
    assert labels == ["[1]", "[2]", "[3]", "form"]
    assert figure.axes[0].get_title() == "[4]\n[1]\n→ [2] (92%)"
    text.write_legend(tmp_path / "legend.txt")
    expected = [*NAMES, known.ids[0]]
    assert (tmp_path / "legend.txt").read_text("utf-8").splitlines() == [
        f"[{n}]\t{x}" for n, x in enumerate(expected, 1)
    ]
    said = capsys.readouterr()
    assert said.out.count("note: no font has all characters") == 1 and said.err == ""
    Lettering(["form"]).write_legend(tmp_path / "legend.txt")
    assert not (tmp_path / "legend.txt").exists() and capsys.readouterr().out == ""


@pytest.mark.parametrize("fonts", [True, False])
def test_label_errors_and_duplicates_name_korean_classes(
    tmp_path: Path, fonts: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    if not fonts:
        monkeypatch.setattr(lettering, "PACKAGES", ())
    for number in range(12):
        folder = tmp_path / "data" / "train" / NAMES[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        draw(number % 3, 0 if number < 6 else number).save(folder / f"쪽 {number}.png")
    known = validation(NAMES)
    arrays = {
        "ids": known.ids,
        "targets": known.targets,
        "probabilities": known.probabilities,
        "split_fingerprint": "x",
    }
    val_predictions.write(tmp_path / "val_predictions.npz", arrays, NAMES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert label_errors.write(tmp_path / "val_predictions.npz", tmp_path, None)
        config = DataConfig(root=str(tmp_path / "data"), val_fraction=0.25)
        check.write(check.check(config), tmp_path / "out")
    assert (tmp_path / "label_errors.csv").read_bytes().startswith(b"\xef\xbb\xbfID,")
    assert "송장" in (tmp_path / "label_errors.csv").read_text("utf-8-sig")
    said = capsys.readouterr()
    assert said.out.count("no font has all characters") == (0 if fonts else 2) and "Glyph" not in said.err
    assert (tmp_path / "names_in_label_errors.txt").exists() != fonts
    assert (tmp_path / "out" / "names_in_duplicates.txt").exists() != fonts


def test_commands_with_one_output_folder_keep_each_others_legends(tmp_path: Path) -> None:
    """check-data finds no duplicates and has no picture, so no names in it."""
    folder = tmp_path / "data" / "train"
    for number in range(6):
        (folder / f"c{number % 2}").mkdir(parents=True, exist_ok=True)
        draw(number % 2, number).save(folder / f"c{number % 2}" / f"{number}.png")
    (tmp_path / "names_in_label_errors.txt").write_text("[1]\t송장\n")
    check.write(check.check(DataConfig(root=str(tmp_path / "data"), val_fraction=0.5)), tmp_path)
    assert (tmp_path / "names_in_label_errors.txt").exists()


def test_a_long_name_is_short_in_the_matrix_and_leaves_room_for_the_cells(tmp_path: Path) -> None:
    names = [f"{letter * 150}{'-long' * 30}" for letter in "abc"]
    known = Validation(["x", "y", "z"], np.arange(3), np.eye(3, dtype=np.float32), names)
    figure = plots.confusion(known, Lettering(names))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gallery.save(figure, tmp_path / "matrix.png")
    axes, bar = figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(set(labels)) == 3 and all("…" in label and len(label) < 40 for label in labels)
    cells, title = axes.get_window_extent(), axes.title.get_window_extent()
    assert cells.width > 2.5 * figure.dpi and title.x1 < bar.get_window_extent().x0


def test_the_matrix_of_many_classes_stays_small(tmp_path: Path) -> None:
    names = [f"c{n}" for n in range(300)]
    known = Validation([str(n) for n in range(300)], np.arange(300), np.eye(300, dtype=np.float32), names)
    gallery.save(plots.confusion(known, Lettering(names)), tmp_path / "matrix.png")
    with Image.open(tmp_path / "matrix.png") as picture:
        assert max(picture.size) < 4000


@pytest.mark.parametrize("letter", ["송", "W", "i"])
def test_long_names_stay_within_their_tile(tmp_path: Path, letter: str) -> None:
    """And keep both ends: the name of the file, and the probability."""
    draw(0, 1).save(tmp_path / "page.png")
    lettering.prepare([letter])
    caption = f"{letter * 60}/page.png\n→ {letter * 40} (19%)"
    figure = gallery.gallery([gallery.Tile(tmp_path / "page.png", caption)] * 3, 3, "title")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    places = [axes.title.get_window_extent() for axes in figure.axes]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(places))
    assert places[0].x0 >= 0 and places[-1].x1 <= figure.bbox.x1
    first, second = figure.axes[0].get_title().split("\n")
    assert first.endswith("/page.png") and "…" in first and second.startswith("→ ") and second.endswith("(19%)")
