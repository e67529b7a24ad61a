"""`sample-data`: draw a small, seeded set of documents, for a first run without own data."""

from __future__ import annotations

import csv
import hashlib
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

from trainer.base.errors import ConfigError

MARKER, BUILDING = ".sample-data", ".drawing-"
Colour = tuple[int, int, int]

WORDS = (
    "account address amount annex article balance branch building carbon charge city client code committee "
    "copy cover credit customer date deadline delivery department draft due early east evening factor final "
    "form garden general harbour hour item journal labour letter line local manager market measure member "
    "minute month morning north notice number office open order other page paper part payment person place "
    "point present price project public quarter receipt record remark report return river road room sample "
    "school second section service signed small south state station street subject table tax term thank total "
    "tower train travel unit value water week west window work year "
).split()
NAMES = (
    "Adler Berg Castro Dubois Ellis Ferrer Grant Haas Ibsen Jansen Keller Lund Meyer Novak Olsen Quinn Rossi".split()
)
GOODS = "apples bread cheese coffee envelope flour garlic honey ink juice ladder milk nails oil paper rice soap".split()


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


@dataclass
class Sheet:
    """A sheet to draw on, with its random generator."""

    width: int
    height: int
    chance: random.Random
    paper: Colour
    ink: Colour
    image: Image.Image = field(init=False)
    pen: ImageDraw.ImageDraw = field(init=False)
    margin: int = field(init=False)

    def __post_init__(self) -> None:
        self.image = Image.new("RGB", (self.width, self.height), self.paper)
        self.pen = ImageDraw.Draw(self.image)
        self.margin = int(self.width * self.chance.uniform(0.06, 0.13))

    def words(self, count: int) -> str:
        return " ".join(self.chance.choice(WORDS) for _ in range(count)).capitalize()

    def text(self, x: float, y: float, text: str, size: int, colour: Colour | None = None, anchor: str = "la") -> None:
        self.pen.text((x, y), text, font=_font(size), fill=colour or self.ink, anchor=anchor)

    def line(self, x0: float, y0: float, x1: float, y1: float, width: int = 1, colour: Colour | None = None) -> None:
        self.pen.line((x0, y0, x1, y1), fill=colour or self.ink, width=width)

    def paragraph(self, x: float, y: float, width: float, lines: int, size: int) -> float:
        """Draw running text. Returns its lower end."""
        for number in range(lines):
            share = 1.0 if number < lines - 1 else self.chance.uniform(0.3, 0.9)
            text = self.words(max(2, int(width * share / (size * 3.4))))
            while text and self.pen.textlength(text, font=_font(size)) > width * share:
                text = text[:-1]
            self.text(x, y, text, size)
            y += size * 1.35
        return y

    def scribble(self, x: float, y: float, length: float, size: float, colour: Colour, width: int = 2) -> None:
        """Draw a line that looks like handwriting."""
        points = [(x, y)]
        while points[-1][0] < x + length:
            step = size * self.chance.uniform(0.15, 0.4)
            points.append((points[-1][0] + step, y + size * self.chance.uniform(-0.5, 0.5)))
        self.pen.line(points, fill=colour, width=width, joint="curve")

    def bright(self) -> Colour:
        """A bright colour, as in logos."""
        hue = [self.chance.randint(20, 90), self.chance.randint(40, 150), self.chance.randint(130, 220)]
        self.chance.shuffle(hue)
        return (hue[0], hue[1], hue[2])

    def logo(self, x: float, y: float, size: float) -> None:
        shape = self.chance.choice((self.pen.ellipse, self.pen.rectangle))
        shape((x, y, x + size, y + size), fill=self.bright())


def _letter(p: Sheet) -> None:
    size = p.chance.randint(10, 13)
    right = p.width - p.margin
    if p.chance.random() < 0.5:
        p.logo(right - 40, p.margin * 0.6, p.chance.randint(24, 40))
    y = float(p.margin + p.chance.randint(20, 60))
    for text in (p.chance.choice(NAMES), p.words(2), p.words(1)):
        p.text(p.margin, y, text, size)
        y += size * 1.4
    p.text(right, y + 10, f"{p.chance.randint(1, 28)} {p.words(1)} 20{p.chance.randint(10, 29)}", size, anchor="ra")
    y = p.paragraph(p.margin, y + 40, (right - p.margin) * 0.5, 1, size + 2) + 12
    for _ in range(p.chance.randint(2, 4)):
        y = p.paragraph(p.margin, y, right - p.margin, p.chance.randint(2, 5), size) + size
    p.scribble(p.margin, y + 25, p.chance.randint(70, 130), 24, (30, 40, p.chance.randint(90, 170)))
    p.text(p.margin, y + 45, p.chance.choice(NAMES), size)


def _invoice(p: Sheet) -> None:
    size = p.chance.randint(10, 12)
    right = p.width - p.margin
    accent = p.bright()
    p.text(p.margin, p.margin, "INVOICE", p.chance.randint(22, 34), accent)
    p.logo(right - 44, p.margin, 40)
    y = p.margin + 60.0
    for text in (p.chance.choice(NAMES) + " Ltd", p.words(2), f"No. {p.chance.randint(1000, 99999)}"):
        p.text(p.margin, y, text, size)
        y += size * 1.4
    y += p.chance.randint(10, 40)
    columns = [p.margin, p.margin + (right - p.margin) * 0.55, p.margin + (right - p.margin) * 0.75, right]
    p.pen.rectangle((p.margin, y, right, y + size * 1.8), fill=accent)
    for x, title in zip(columns, ("Item", "Qty", "Price", ""), strict=True):
        p.text(x + 4, y + 3, title, size, (255, 255, 255))
    y += size * 2
    for _ in range(p.chance.randint(4, 10)):
        p.text(columns[0] + 4, y, p.chance.choice(GOODS), size)
        p.text(columns[1] + 4, y, str(p.chance.randint(1, 40)), size)
        p.text(right - 4, y, f"{p.chance.uniform(1, 900):.2f}", size, anchor="ra")
        y += size * 1.7
        p.line(p.margin, y - 3, right, y - 3, 1, (190, 190, 190))
    p.text(right - 4, y + 8, f"Total {p.chance.uniform(100, 9000):.2f}", size + 4, anchor="ra")


def _receipt(p: Sheet) -> None:
    size = p.chance.randint(11, 14)
    middle, half = p.width / 2, p.width * p.chance.uniform(0.18, 0.26)
    left, right = middle - half, middle + half
    p.pen.rectangle((left - 16, 0, right + 16, p.height), fill=(250, 250, 248))
    p.pen.rectangle((0, 0, left - 16, p.height), fill=tuple(int(c * 0.75) for c in p.paper))
    p.pen.rectangle((right + 16, 0, p.width, p.height), fill=tuple(int(c * 0.75) for c in p.paper))
    y = float(p.chance.randint(20, 50))
    p.text(middle, y, p.chance.choice(NAMES).upper() + " MARKET", size + 5, anchor="ma")
    y += size * 3
    for _ in range(p.chance.randint(8, 18)):
        p.text(left, y, p.chance.choice(GOODS), size)
        p.text(right, y, f"{p.chance.uniform(0.5, 40):.2f}", size, anchor="ra")
        y += int(size * 1.4)
    p.line(left, y, right, y, 2)
    p.text(right, y + 8, f"TOTAL {p.chance.uniform(10, 300):.2f}", size + 5, anchor="ra")
    _barcode(p, left, y + 45, 2 * half, 34)


def _barcode(p: Sheet, x: float, y: float, width: float, height: float) -> None:
    end = x + width
    while x < end - 5:
        bar = p.chance.choice((1, 1, 2, 3))
        p.pen.rectangle((x, y, x + bar, y + height), fill=(20, 20, 20))
        x += bar + p.chance.choice((2, 2, 3, 4))


def _form(p: Sheet) -> None:
    size = p.chance.randint(9, 11)
    right = p.width - p.margin
    p.text(p.width / 2, p.margin * 0.7, p.words(3), 17, anchor="ma")
    y = p.margin + 25.0
    ink = (p.chance.randint(10, 60), p.chance.randint(20, 60), p.chance.randint(110, 180))
    while y < p.height - p.margin - 30:
        cells = p.chance.choice((1, 2, 2, 3))
        width = (right - p.margin) / cells
        height = p.chance.randint(28, 42)
        for cell in range(cells):
            x = p.margin + cell * width
            p.pen.rectangle((x, y, x + width, y + height), outline=p.ink, width=1)
            p.text(x + 4, y + 2, p.words(1), size)
            if p.chance.random() < 0.6:
                p.scribble(x + 8, y + height * 0.65, width * p.chance.uniform(0.3, 0.7), 11, ink)
            elif p.chance.random() < 0.5:
                p.pen.rectangle((x + width - 20, y + 8, x + width - 8, y + 20), outline=p.ink)
        y += height


def _report(p: Sheet) -> None:
    size = p.chance.randint(9, 11)
    right, gap = p.width - p.margin, 16
    p.text(p.width / 2, p.margin, p.words(4), 18, anchor="ma")
    p.text(p.width / 2, p.margin + 26, f"{p.chance.choice(NAMES)}, {p.chance.choice(NAMES)}", 12, anchor="ma")
    width = (right - p.margin - gap) / 2
    for column in range(2):
        x, y = p.margin + column * (width + gap), p.margin + 55.0
        chart = p.chance.random() < 0.7
        while y < p.height - p.margin - 20:
            if chart and y > p.height * p.chance.uniform(0.3, 0.5):
                base = y + 90
                p.line(x, base, x + width, base)
                p.line(x, y, x, base)
                points = [(x + width * i / 8, base - p.chance.uniform(5, 85)) for i in range(9)]
                p.pen.line(points, fill=p.bright(), width=2)
                y, chart = base + 12, False
            y = p.paragraph(x, y, width, p.chance.randint(3, 6), size) + size * 0.7


def _handwritten_note(p: Sheet) -> None:
    ink = p.chance.choice(((25, 35, 120), (20, 20, 30), (80, 30, 30)))
    gap = p.chance.randint(26, 38)
    ruled = p.chance.random() < 0.7
    if p.chance.random() < 0.4:
        p.line(p.margin * 1.3, 0, p.margin * 1.3, p.height, 1, (220, 130, 130))
    for y in range(gap * 2, p.height - 10, gap):
        if ruled:
            p.line(0, y, p.width, y, 1, (170, 190, 220))
        if p.chance.random() < 0.88:
            x = p.margin * 1.5
            end = p.width - p.margin * p.chance.uniform(0.6, 3)
            while x < end:
                length = p.chance.uniform(20, 70)
                p.scribble(x, y - gap * 0.25, length, gap * 0.5, ink)
                x += length + p.chance.uniform(10, 18)


def _newspaper(p: Sheet) -> None:
    right, columns = p.width - p.margin * 0.6, p.chance.choice((3, 4))
    left = p.margin * 0.6
    p.text(p.width / 2, 12, f"The {p.words(1)} {p.chance.choice(('Post', 'Times', 'Herald'))}", 40, anchor="ma")
    p.line(left, 64, right, 64, 3)
    p.text(left, 74, p.words(5), 22)
    width = (right - left - 10 * (columns - 1)) / columns
    photo = p.chance.randrange(columns)
    for column in range(columns):
        x, y = left + column * (width + 10), 108.0
        if column == photo:
            shade = p.chance.randint(60, 140)
            p.pen.rectangle((x, y, x + width, y + 80), fill=(shade, shade, shade))
            y += 90
        while y < p.height - 20:
            y = p.paragraph(x, y, width, p.chance.randint(4, 8), 8) + 7


def _identity_card(p: Sheet) -> None:
    tint = tuple(min(255, c // 3 + 165) for c in p.bright())
    x0, x1 = p.width * 0.08, p.width * 0.92
    y0 = p.height * p.chance.uniform(0.15, 0.35)
    y1 = y0 + (x1 - x0) * 0.62
    p.pen.rounded_rectangle((x0, y0, x1, y1), 18, fill=tint, outline=(90, 90, 90), width=2)
    p.text(x0 + 20, y0 + 14, "IDENTITY CARD", 20, p.bright())
    shade = p.chance.randint(120, 200)
    side = (x1 - x0) * 0.28
    p.pen.rectangle((x0 + 20, y0 + 55, x0 + 20 + side, y0 + 55 + side * 1.25), fill=(shade, shade - 10, shade - 20))
    p.pen.ellipse((x0 + 20 + side * 0.25, y0 + 75, x0 + 20 + side * 0.75, y0 + 75 + side * 0.6), fill=(190, 150, 125))
    for row in range(p.chance.randint(4, 6)):
        y = y0 + 60 + row * 27
        p.text(x0 + side + 40, y, p.words(1), 9)
        p.text(
            x0 + side + 40,
            y + 10,
            p.chance.choice(
                (
                    p.chance.choice(NAMES),
                    f"{p.chance.randint(1, 28)}.{p.chance.randint(1, 12)}.19{p.chance.randint(50, 99)}",
                )
            ),
            14,
        )


def _ticket(p: Sheet) -> None:
    accent = p.bright()
    y0 = p.height * p.chance.uniform(0.2, 0.45)
    y1 = y0 + p.height * p.chance.uniform(0.25, 0.35)
    p.pen.rectangle((20, y0, p.width - 20, y1), fill=(252, 250, 240), outline=accent, width=3)
    p.pen.rectangle((20, y0, p.width - 20, y0 + 34), fill=accent)
    p.text(32, y0 + 6, p.chance.choice(("BOARDING PASS", "TRAIN TICKET", "ADMIT ONE")), 20, (255, 255, 255))
    p.text(36, y0 + 50, p.words(1), 26)
    p.text(36, y0 + 86, f"Seat {p.chance.randint(1, 80)}{p.chance.choice('ABCD')}  {p.chance.uniform(3, 90):.2f}", 15)
    cut = p.width * p.chance.uniform(0.65, 0.75)
    for y in range(int(y0), int(y1), 8):
        p.line(cut, y, cut, y + 4, 2, (130, 130, 130))
    _barcode(p, cut + 14, y0 + 50, p.width - cut - 50, y1 - y0 - 75)


def _certificate(p: Sheet) -> None:
    accent = p.bright()
    for inset in (14, 22):
        p.pen.rectangle((inset, inset, p.width - inset, p.height - inset), outline=accent, width=3)
    y = p.height * p.chance.uniform(0.15, 0.25)
    p.text(p.width / 2, y, p.chance.choice(("Certificate", "Diploma", "Award")), 40, accent, "ma")
    p.text(p.width / 2, y + 70, p.words(3), 15, anchor="ma")
    p.text(p.width / 2, y + 105, f"{p.chance.choice(NAMES)} {p.chance.choice(NAMES)}", 28, anchor="ma")
    for row in range(p.chance.randint(2, 3)):
        p.text(p.width / 2, y + 165 + row * 22, p.words(p.chance.randint(4, 6)), 13, anchor="ma")
    radius = p.chance.randint(28, 42)
    x, y = p.width * p.chance.choice((0.25, 0.5, 0.75)), p.height * 0.8
    p.pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(190, 40, 40))
    p.scribble(p.width * 0.55, p.height * 0.84, 120, 20, (30, 40, 120))


KINDS: dict[str, Callable[[Sheet], None]] = {
    "letter": _letter,
    "invoice": _invoice,
    "receipt": _receipt,
    "form": _form,
    "report": _report,
    "handwritten_note": _handwritten_note,
    "newspaper": _newspaper,
    "identity_card": _identity_card,
    "ticket": _ticket,
    "certificate": _certificate,
}


def draw(kind: str, chance: random.Random) -> Image.Image:
    """One upright document of a kind (a key of `KINDS`), about 500 × 540 pixels."""
    tint = chance.randint(232, 255)
    paper = (tint, tint - chance.randint(0, 6), tint - chance.randint(0, 22))
    shade = chance.randint(10, 70)
    page = Sheet(chance.randint(430, 560), chance.randint(520, 640), chance, paper, (shade, shade, shade + 5))
    KINDS[kind](page)
    if chance.random() < 0.25:  # a stamp
        x, y = chance.randint(60, page.width - 120), chance.randint(80, page.height - 120)
        page.pen.ellipse((x, y, x + 74, y + 74), outline=chance.choice(((170, 40, 50), (40, 60, 150))), width=4)
        page.text(x + 37, y + 37, chance.choice(("PAID", "COPY", "SEEN")), 17, (150, 50, 60), "mm")
    return page.image.rotate(chance.uniform(-1.5, 1.5), Image.Resampling.BILINEAR, fillcolor=paper)


def distort(image: Image.Image, chance: random.Random) -> Image.Image:
    """The page as a photo: rotated, tilted, darker, blurred or noisy."""
    turns = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
    turn = chance.choice(turns)
    image = image.transpose(turn) if turn is not None else image
    image = image.rotate(chance.uniform(-12, 12), Image.Resampling.BILINEAR, expand=True, fillcolor=(90, 80, 70))
    image = ImageEnhance.Brightness(image).enhance(chance.uniform(0.7, 1.1))
    if chance.random() < 0.5:
        return image.filter(ImageFilter.GaussianBlur(chance.uniform(0.5, 1.6)))
    noise = np.random.default_rng(chance.getrandbits(32)).normal(
        0, chance.uniform(4, 14), (image.height, image.width, 1)
    )
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def write_sample_data(
    out: Path, classes: int = 6, per_class: int = 40, test_per_class: int = 10, seed: int = 0, force: bool = False
) -> None:
    """Draw `per_class` training and `test_per_class` test documents of each of `classes` kinds into the folder `out`.

    The folder has the trainer's CSV layout and test_labels.csv for scoring. Equal arguments give equal bytes. Raises
    ConfigError for a wrong number, or if the folder is not empty. `force` replaces a folder of this function.
    """
    if not 2 <= classes <= len(KINDS):
        raise ConfigError(f"--classes {classes}: must be from 2 to {len(KINDS)}: {', '.join(KINDS)}")
    if per_class < 2:
        raise ConfigError(f"--per-class {per_class}: must be at least 2, one for training and one for validation")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; give a folder")
    if out.is_dir() and any(not path.name.startswith(BUILDING) for path in out.iterdir()):
        mine = (out / MARKER).is_file()
        if not (mine and force):
            hint = "use --force to draw it again, or give another folder" if mine else "give another folder"
            raise ConfigError(f"{out}: the folder is not empty; {hint}")
    named, out = out, out.resolve()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=BUILDING, dir=out if out.is_dir() else out.parent))
    except OSError as error:
        raise ConfigError(f"{out}: cannot write ({error.strerror}); give another folder") from None
    try:
        _fill(building, list(KINDS)[:classes], per_class, test_per_class, seed)
        building.chmod(0o755)
        if not out.is_dir():
            building.rename(out)
        else:  # it may be the current folder, or a mount: it stays
            for old in out.iterdir():
                if old != building:
                    shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
            for new in building.iterdir():
                new.rename(out / new.name)
    except OSError as error:
        if error.errno is not None and (error.filename is None or str(error.filename).startswith(str(building))):
            error.filename, error.filename2 = str(named), None
        raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    print(
        f"drew {classes * per_class} training and {classes * test_per_class} test documents of {classes} kinds: {named}"
    )


def _fill(root: Path, kinds: Sequence[str], per_class: int, test_per_class: int, seed: int) -> None:
    listed: dict[str, list[tuple[str, int]]] = {"train": [], "test": []}
    for folder, count in (("train", per_class), ("test", test_per_class)):
        (root / folder).mkdir()
        for target, kind in enumerate(kinds):
            for number in range(count):
                key = f"{seed}-{folder}-{kind}-{number}"
                name = hashlib.sha256(key.encode()).hexdigest()[:10] + ".jpg"  # the name must not contain the class
                chance = random.Random(key)
                image = draw(kind, chance)
                image = image if folder == "train" else distort(image, chance)
                image.save(root / folder / name, quality=chance.randint(70, 92))
                listed[folder].append((name, target))
        listed[folder].sort()
    _write(root / "train.csv", ("ID", "target"), listed["train"])
    _write(root / "test_labels.csv", ("ID", "target"), listed["test"])
    _write(root / "sample_submission.csv", ("ID", "target"), [(name, 0) for name, _ in listed["test"]])
    _write(root / "meta.csv", ("target", "class_name"), list(enumerate(kinds)))
    (root / MARKER).write_text(f"drawn with seed {seed}\n", encoding="utf-8")


def _write(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
