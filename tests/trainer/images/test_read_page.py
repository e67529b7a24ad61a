"""The same page gives the same pixels: whatever its format, mode, depth, orientation and place in the file."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageDraw, ImageFile, ImageFont, PngImagePlugin

from trainer.images import decode, examined, read_page
from trainer.images.read_page import Pixels

BACK = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""What turns an upright page into the stored one, by the tag that turns it back."""


def page(width: int = 61, height: int = 90) -> Image.Image:
    """A page that differs from itself in each orientation."""
    drawn = Image.new("RGB", (width, height), (250, 248, 240))
    pen = ImageDraw.Draw(drawn)
    pen.rectangle((width // 12, height // 11, width // 2, height // 4), fill=(200, 30, 20))
    pen.line((3, height // 2, width - 9, height // 2 + 4), fill=(0, 0, 90), width=2)
    pen.ellipse((width // 3, height * 2 // 3, width * 3 // 4, height - 5), outline=0)
    return drawn


def veiled() -> Image.Image:
    """The page with a transparent and a half transparent part."""
    alpha = Image.new("L", page().size, 255)
    ImageDraw.Draw(alpha).rectangle((0, 0, 60, 30), fill=0)
    ImageDraw.Draw(alpha).rectangle((0, 31, 60, 50), fill=100)
    with_alpha = page()
    with_alpha.putalpha(alpha)
    return with_alpha


def gray() -> NDArray[np.uint8]:
    return np.asarray(page().convert("L"))


def on_paper(image: Image.Image) -> Pixels:
    rgba = image.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))


def pages() -> dict[str, tuple[Image.Image, Pixels]]:
    """Pages in every mode that Pillow writes, and what they look like."""
    plain = {mode: page().convert(mode) for mode in ("RGB", "L", "1", "P", "CMYK")}
    clear = {"RGBA": veiled(), "LA": veiled().convert("LA")}
    deep = {
        "I;16": Image.fromarray(gray().astype(np.uint16) * 257),
        "I": Image.fromarray(gray().astype(np.int32) * 257),
        "F": Image.fromarray(gray().astype(np.float32) / 255),
    }
    want = np.repeat(gray()[..., None], 3, axis=2)
    return (
        {mode: (image, np.asarray(image.convert("RGB"))) for mode, image in plain.items()}
        | {mode: (image, on_paper(image)) for mode, image in clear.items()}
        | {mode: (image, want) for mode, image in deep.items()}
    )


def apart(first: Pixels, second: Pixels) -> int:
    """The largest difference of two pages, of 255."""
    assert first.shape == second.shape
    return int(np.abs(first.astype(int) - second).max())


def files_of(stored: Image.Image, tag: int) -> dict[str, bytes]:
    """The page in every lossless format that has its mode and an orientation."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = tag
    ways: dict[str, dict[str, Any]] = {
        f"tif {how}": {"format": "TIFF", "compression": how, "tiffinfo": {274: tag}}
        for how in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits")
    }
    if stored.mode == "1":
        ways["tif group4"] = {"format": "TIFF", "compression": "group4", "tiffinfo": {274: tag}}
    if stored.mode not in ("CMYK", "I", "F"):
        ways["png"] = {"format": "PNG", "exif": exif}
    if stored.mode in ("RGB", "RGBA"):
        ways["webp"] = {"format": "WEBP", "lossless": True, "exact": True, "exif": exif}
    made = {}
    for name, arguments in ways.items():
        file = io.BytesIO()
        stored.save(file, **arguments)
        made[name] = file.getvalue()
    return made


@pytest.mark.parametrize("mode", list(pages()))
def test_every_orientation_in_every_format_is_the_upright_page(mode: str, tmp_path: Path) -> None:
    """Through a path, which Pillow may map into memory, and reduced to the model's size."""
    upright, want = pages()[mode]
    smaller = {}
    for tag, back in BACK.items():
        for name, content in files_of(upright if back is None else upright.transpose(back), tag).items():
            path = tmp_path / "page"
            path.write_bytes(content)
            assert apart(read_page.read_page(path), want) <= 1, (name, tag)
            assert read_page.page_shape(path) == (90, 61), (name, tag)
            small = read_page.read_page(path, 40, cv2.INTER_LINEAR)
            assert apart(small, smaller.setdefault("first", small)) <= 1, (name, tag)
    assert smaller["first"].shape == (40, 27, 3)


def tiff(
    pixels: NDArray[Any], tags: dict[int, tuple[str, list[Any]]], tile: int | None = None, photometric: int = 1
) -> bytes:
    """A gray uncompressed TIFF with these tags (type of `struct`, values), in tiles of `tile` pixels or in one strip."""
    height, width = pixels.shape
    bits = pixels.dtype.itemsize * 8
    if tile is None:
        parts = [pixels.tobytes()]
        place: dict[int, tuple[str, list[Any]]] = {278: ("I", [height])}
    else:
        wide = np.pad(pixels, ((0, -height % tile), (0, -width % tile)))
        rows, columns = (range(0, side, tile) for side in wide.shape)
        parts = [np.ascontiguousarray(wide[y : y + tile, x : x + tile]).tobytes() for y in rows for x in columns]
        place = {322: ("I", [tile]), 323: ("I", [tile])}
    offsets = [8 + sum(map(len, parts[:number])) for number in range(len(parts))]
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    entries: dict[int, tuple[str, list[Any]]] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [bits]),
        259: ("H", [1]),
        262: ("H", [photometric]),
        277: ("H", [1]),
        339: ("H", [kind]),
        (273 if tile is None else 324): ("I", offsets),
        (279 if tile is None else 325): ("I", [len(part) for part in parts]),
        **place,
        **tags,
    }
    start = 8 + sum(map(len, parts))
    more, table = b"", struct.pack("<H", len(entries))
    after = start + 2 + 12 * len(entries) + 4
    for tag, (code, values) in sorted(entries.items()):
        data = struct.pack(f"<{len(values)}{code}", *values)
        place_of = struct.pack("<I", after + len(more)) if len(data) > 4 else data.ljust(4, b"\0")
        more += data if len(data) > 4 else b""
        table += struct.pack("<HHI", tag, {"H": 3, "I": 4, "f": 11, "i": 9, "h": 8}[code], len(values)) + place_of
    return struct.pack("<2sHI", b"II", 42, start) + b"".join(parts) + table + struct.pack("<I", 0) + more


@pytest.mark.parametrize("tile", [None, 16])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_tiles_and_strips_are_upright(tile: int | None, depth: type[Any]) -> None:
    for tag, back in BACK.items():
        stored = np.asarray(page().convert("L") if back is None else page().convert("L").transpose(back))
        values = stored.astype(depth) * (257 if depth is np.uint16 else 1)
        file = io.BytesIO(tiff(values, {274: ("H", [tag])}, tile))
        assert apart(read_page.read_page(file)[..., 0], gray()) <= 1, tag


G = gray()


@pytest.mark.parametrize(
    ("values", "tags", "photometric"),
    [
        (G.astype(np.uint16) * 257, {}, 1),
        ((255 - G).astype(np.uint16) * 257, {}, 0),
        (G.astype(np.uint16) * 16, {281: ("H", [4095])}, 1),  # 12 bits in 16
        (G.astype(np.uint16) * 4, {341: ("H", [1023])}, 1),
        (G.astype(np.int16) * 128, {}, 1),
        ((G.astype(np.int32) * 257 - 32768).astype(np.int16), {340: ("h", [-32768]), 341: ("h", [32767])}, 1),
        (G.astype(np.uint32) * 2**24 + 2**23, {}, 1),
        (G.astype(np.uint32) * 257, {}, 1),
        (G.astype(np.int32) * 2**23, {}, 1),
        (G.astype(np.uint32), {}, 1),
        (G.astype(np.float32) / 255, {}, 1),
        (1 - G.astype(np.float32) / 255, {}, 0),
        (G.astype(np.float32), {}, 1),
        (G.astype(np.float32) * 257, {}, 1),
        (G.astype(np.float32) / 255 / 4, {341: ("f", [0.25])}, None),
        (G.astype(np.float32) * 257 / 300, {341: ("f", [255.0])}, None),
    ],
)
def test_values_of_more_than_eight_bits_are_gray_levels(
    values: NDArray[Any], tags: dict[int, tuple[str, list[Any]]], photometric: int | None
) -> None:
    """By the declared range; the largest value of a page (not 1 or 2^n - 1) is no declaration."""
    want = G.astype(float)
    if photometric is None:  # no range is declared that counts, or one that the page does not use
        want = want / 4 if values.max() < 1 else want * 257 / 300
    found = read_page.read_page(io.BytesIO(tiff(values, tags, photometric=1 if photometric is None else photometric)))
    assert np.abs(found[..., 0] - want).max() <= 1.01


def test_a_dark_page_of_sixteen_bits_stays_dark() -> None:
    """By its format, not by its largest value."""
    values = np.full((20, 20), 200, dtype=np.uint16)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    assert read_page.read_page(file).max() <= 1
    header = b"P5 20 20 65535\n"
    assert read_page.read_page(io.BytesIO(header + values.astype(">u2").tobytes())).max() <= 1


@pytest.mark.parametrize("white", [1.0, 255.0])
def test_floats_beside_their_range_change_nothing_else(white: float) -> None:
    values = gray().astype(np.float32) * np.float32(white / 255)
    values[0, :4] = [np.nan, np.inf, -np.inf, white * 1.2]
    values[1, 0] = -0.1 * white
    found = read_page.read_page(io.BytesIO(tiff(values, {})))[..., 0]
    assert found[0, :4].tolist() == [255, 255, 0, 255] and found[1, 0] == 0
    assert apart(found[2:], gray()[2:]) <= 1
    nothing = np.full((9, 9), np.nan, dtype=np.float32)
    assert (read_page.read_page(io.BytesIO(tiff(nothing, {}))) == 255).all()


def png(header: tuple[int, int, int, int], rows: list[bytes], before: list[bytes], after: list[bytes]) -> bytes:
    """A PNG of (width, height, bits, colour type) and raw rows, with chunks before and after its pixels."""

    def chunk(content: bytes) -> bytes:
        return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))

    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", *header, 0, 0, 0), *before, b"IDAT" + pixels, *after, b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(chunk, chunks))


@pytest.mark.parametrize(
    ("header", "row", "clear"),
    [
        ((2, 1, 16, 0), struct.pack(">2H", 500, 0x4000), struct.pack(">H", 500)),
        ((2, 1, 8, 0), bytes([5, 0x40]), struct.pack(">H", 5)),
        ((2, 1, 4, 0), bytes([0x34]), struct.pack(">H", 3)),
        ((2, 1, 2, 0), bytes([0b00010000]), struct.pack(">H", 0)),
        ((2, 1, 1, 0), bytes([0b01000000]), struct.pack(">H", 0)),
        ((2, 1, 16, 2), struct.pack(">6H", 500, 600, 700, *[0x4000] * 3), struct.pack(">3H", 500, 600, 700)),
        ((2, 1, 8, 2), bytes([5, 6, 7, 0x40, 0x40, 0x40]), struct.pack(">3H", 5, 6, 7)),
    ],
)
def test_the_transparent_colour_of_a_png_is_paper_at_every_depth(
    header: tuple[int, int, int, int], row: bytes, clear: bytes
) -> None:
    found = read_page.read_page(io.BytesIO(png(header, [row], [b"tRNS" + clear], [])))
    seen = {4: 0x44, 2: 85, 1: 255}.get(header[2], 0x40)
    assert found[0].tolist() == [[255] * 3, [seen] * 3]


def test_a_palette_with_transparency_lies_on_paper() -> None:
    for name, arguments in (("PNG", {"transparency": 1}), ("GIF", {"transparency": 1})):
        image = Image.new("P", (4, 4), 1)
        image.putpalette([0, 0, 0, 9, 9, 9])
        image.putpixel((0, 0), 0)
        file = io.BytesIO()
        image.save(file, name, **arguments)
        found = read_page.read_page(file)
        assert found[0, 0].tolist() == [0, 0, 0] and (found.reshape(-1, 3)[1:] == 255).all(), name


def test_an_alpha_channel_of_zeros_is_no_transparency() -> None:
    """Windows programs leave the fourth byte of a bitmap unset. An empty sheet is white all the same."""
    for mode in ("RGBA", "LA"):
        for image, want in (
            (page().convert(mode), np.asarray(page().convert(mode).convert("RGB"))),
            (Image.new(mode, (61, 90), 0), np.full((90, 61, 3), 255)),
        ):
            image.putalpha(0)
            file = io.BytesIO()
            image.save(file, "PNG")
            assert apart(read_page.read_page(file), want) <= 1, mode


def test_lab_is_read_as_colours(tmp_path: Path) -> None:
    white, black = (255, 128, 128), (0, 128, 128)
    image = Image.new("LAB", (20, 20), white)
    image.paste(black, (0, 0, 10, 20))
    image.save(tmp_path / "page.tif")
    assert not list(examined.unreadable([tmp_path / "page.tif"]))
    found = read_page.read_page(tmp_path / "page.tif")
    assert found[:, :10].max() <= 2 and found[:, 10:].min() >= 253


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 7), (6, 300), (300, 6), (9, 2)])
def test_a_tiny_jpeg_is_read_as_its_png(tmp_path: Path, size: tuple[int, int]) -> None:
    page(120, 120).resize(size).save(tmp_path / "page.jpg")
    with Image.open(tmp_path / "page.jpg") as image:
        image.save(tmp_path / "page.png")
    assert not list(examined.unreadable([tmp_path / "page.jpg", tmp_path / "page.png"]))
    for longest in (None, 400):
        assert apart(*(read_page.read_page(tmp_path / f"page.{name}", longest) for name in ("jpg", "png"))) <= 1


def text_page(width: int, height: int) -> Image.Image:
    drawn = Image.new("RGB", (width, height), (250, 248, 240))
    pen, chance = ImageDraw.Draw(drawn), random.Random(0)
    for y in range(40, height - 40, 28):
        words = " ".join(str(chance.randint(10, 10**9)) for _ in range(6))
        pen.text((50, y), words, fill=(30, 30, 60), font=ImageFont.load_default(20))
    pen.line((40, 30, width - 40, 30), fill=(150, 0, 0), width=2)
    return drawn


@pytest.mark.parametrize("longest", [150, 224, 384])
def test_a_large_page_is_averaged_alike_by_the_jpeg_decoder_and_here(tmp_path: Path, longest: int) -> None:
    """Resized at once with OpenCV's linear interpolation, the PNG would lose its thin lines, and the JPEG would not."""
    text_page(803, 1131).save(tmp_path / "page.jpg", quality=95, subsampling=0)
    with Image.open(tmp_path / "page.jpg") as image:
        image.save(tmp_path / "page.png")
        image.save(tmp_path / "page.tif")
        image.convert("L").save(tmp_path / "gray.png")
    jpeg, *others = (
        read_page.read_page(tmp_path / f"page.{name}", longest, cv2.INTER_LINEAR).astype(int)
        for name in ("jpg", "png", "tif")
    )
    at_once = cv2.resize(np.asarray(Image.open(tmp_path / "page.png")), jpeg.shape[1::-1]).astype(int)
    assert apart(others[0], others[1]) == 0
    mean = float(np.abs(jpeg - others[0]).mean())
    print(f"mean difference {mean:.2f}, resized at once {np.abs(jpeg - at_once).mean():.2f}")
    assert mean < 0.5 < np.abs(jpeg - at_once).mean()
    in_gray = read_page.read_page(tmp_path / "gray.png", longest, cv2.INTER_LINEAR)
    assert np.abs(in_gray[..., 0] - others[0] @ np.array([0.299, 0.587, 0.114])).max() <= 2


def test_the_header_of_a_png_says_its_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    page().save(tmp_path / "plain.png")
    page().save(tmp_path / "turned.png", exif=exif)
    text = PngImagePlugin.PngInfo()
    text.add_text("date:create", "2026-11-30")
    page().save(tmp_path / "text.png", pnginfo=text)

    def decoded(image: ImageFile.ImageFile) -> None:
        raise AssertionError("the page is decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded)
    shapes = [read_page.page_shape(tmp_path / f"{name}.png") for name in ("plain", "turned", "text")]
    assert shapes == [(90, 61), (61, 90), (90, 61)]


def test_an_orientation_after_the_pixels_of_a_png_counts(tmp_path: Path) -> None:
    """The PNG specification allows it, and ImageMagick writes other text there."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    profile = exif.tobytes().hex().encode()
    raw = b"Raw profile type exif\0\nexif\n" + b"%8d\n" % (len(profile) // 2) + profile + b"\n"
    late = {"exif": b"eXIf" + exif.tobytes()[6:], "xmp": b"iTXt" + xmp, "raw": b"tEXt" + raw}
    rows = [bytes([value, 9]) for value in (1, 2, 3)]
    for name, chunk in late.items():
        for before, after in (([chunk], []), ([], [b"tEXtdate:create\0now", chunk])):
            (tmp_path / "page.png").write_bytes(png((2, 3, 8, 0), rows, before, after))
            assert read_page.page_shape(tmp_path / "page.png") == (2, 3), name
            found = read_page.read_page(tmp_path / "page.png")
            assert found[..., 0].tolist() == [[3, 2, 1], [9, 9, 9]], name
    (tmp_path / "page.png").write_bytes(png((2, 3, 8, 0), rows, [], [b"tEXtdate:create\0now"]))
    assert read_page.page_shape(tmp_path / "page.png") == (3, 2)


def test_damaged_tags_turn_nothing(tmp_path: Path) -> None:
    for number, exif in enumerate((b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0")):
        page().save(tmp_path / f"{number}.jpg", exif=exif, quality=95)
    for value in (0, 9, 65535):
        exif_of = Image.Exif()
        exif_of[ExifTags.Base.Orientation] = value
        page().save(tmp_path / f"value-{value}.jpg", exif=exif_of, quality=95)
        (tmp_path / f"value-{value}.tif").write_bytes(tiff(gray(), {274: ("H", [value])}))
    paths = sorted(tmp_path.iterdir())
    assert not list(examined.unreadable(paths))
    for path in paths:
        assert read_page.read_page(path).shape == (90, 61, 3) and read_page.page_shape(path) == (90, 61)


def test_a_tiff_turned_by_its_xmp_alone_has_its_shape(tmp_path: Path) -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    page().transpose(Image.Transpose.ROTATE_90).save(tmp_path / "page.tif", tiffinfo={700: xmp})
    assert read_page.page_shape(tmp_path / "page.tif") == (90, 61)
    assert apart(read_page.read_page(tmp_path / "page.tif"), np.asarray(page())) == 0
    assert read_page.read_page(tmp_path / "page.tif", 40).shape == (40, 27, 3)


def header_of(width: int, height: int, bits: int, colour: int) -> bytes:
    return png((width, height, bits, colour), [b"\0"], [b"PLTE\0\0\0"] if colour == 3 else [], [])


@pytest.mark.parametrize(
    ("width", "height", "bits", "colour", "refused"),
    [
        (9_921, 14_031, 8, 2, False),  # A4 at 1,200 dpi
        (19_866, 28_087, 1, 0, False),  # A0 at 600 dpi in one bit
        (19_866, 28_087, 8, 2, True),
        (14_000, 14_000, 8, 2, True),
        (20_000, 20_000, 16, 0, True),
        (30_000, 30_000, 1, 0, True),
        (60_000, 60_000, 1, 0, True),
    ],
)
def test_huge_pages_are_refused_by_their_memory(
    tmp_path: Path, width: int, height: int, bits: int, colour: int, refused: bool
) -> None:
    """Refused before a byte is decoded; a page that is not refused fails here for lack of pixels."""
    (tmp_path / "page.png").write_bytes(header_of(width, height, bits, colour))
    if not refused:
        with read_page._opened(tmp_path / "page.png") as (_, image):
            read_page._check_memory(image)
        return
    ((_, reason),) = examined.unreadable([tmp_path / "page.png"])
    assert "not a readable image" not in reason and "make it smaller" in reason
    with pytest.raises(read_page.TooLargeError, match="make it smaller"):
        read_page.read_page(tmp_path / "page.png")


def test_no_page_leaves_the_reader_larger_than_its_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """So that corrupted copies, which need far more memory than the page, have a limit as well."""
    monkeypatch.setattr(read_page, "LARGEST_SIDE", 100)
    text_page(300, 440).save(tmp_path / "page.png")
    images = decode.Images([tmp_path / "page.png"], decode.Limit(50, cv2.INTER_LINEAR))
    assert read_page.read_page(tmp_path / "page.png").shape == images.whole(0).shape == (100, 68, 3)
    assert read_page.read_page(tmp_path / "page.png", 1000).shape == (100, 68, 3)
    assert images(0).shape == (50, 34, 3)


def test_bands_change_no_pixel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text_page(203, 331).save(tmp_path / "page.png")
    page().save(tmp_path / "small.png")
    for name in ("page", "small"):
        for longest in (None, 80, 20):
            whole = read_page.read_page(tmp_path / f"{name}.png", longest)
            with monkeypatch.context() as patch:
                patch.setattr(read_page, "BAND", 16)
                assert apart(whole, read_page.read_page(tmp_path / f"{name}.png", longest)) == 0


def several(path: Path, **arguments: Any) -> Path:
    other = page().transpose(Image.Transpose.ROTATE_180)
    page().save(path, save_all=True, append_images=[other, page()], **arguments)
    return path


def test_files_of_several_pages_are_named_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [several(tmp_path / f"a.{name}") for name in ("tif", "gif", "webp", "png")]
    page().save(tmp_path / "single.tif")
    page().save(tmp_path / "single.gif")
    preview = page().resize((8, 8))
    preview.encoderinfo = {"tiffinfo": {254: 1}}  # type: ignore[attr-defined]
    page().save(tmp_path / "preview.tif", save_all=True, append_images=[preview])
    page().save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[page()])
    singles = [tmp_path / name for name in ("single.tif", "single.gif", "preview.tif", "phone.jpg")]
    assert [read_page.has_several_pages(path) for path in [*files, *singles]] == [True] * 4 + [False] * 4
    for path in files:
        assert read_page.read_page(path).shape == (90, 61, 3)
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    for _ in range(2):  # the second time from the cache
        examined._known.clear()
        assert not list(examined.unreadable([*files, *singles]))
        assert capsys.readouterr().out == (
            "note: 4 files have several pages or frames; only the first of each is read: "
            f"{tmp_path.name}/a.tif, {tmp_path.name}/a.gif, {tmp_path.name}/a.webp, …\n"
        )
    (remembered,) = (tmp_path / "cache" / "examined").glob("[!.]*")
    remembered.write_text("62 images\n")  # what is no memory of this version is made again
    examined._known.clear()
    assert not list(examined.unreadable([*files, *singles]))
    assert capsys.readouterr().out.startswith("note: 4 files")
    monkeypatch.setattr(examined, "DECODERS", ("another Pillow",))
    examined._known.clear()
    assert not list(examined.unreadable([*files, *singles]))
    assert len(list((tmp_path / "cache" / "examined").glob("[!.]*"))) == 2
    assert capsys.readouterr().out.startswith("note: 4 files")
    assert not list(examined.unreadable(singles))
    assert capsys.readouterr().out == ""


def test_damage_after_the_first_page_of_a_tiff_is_no_reason_to_refuse_it(tmp_path: Path) -> None:
    content = several(tmp_path / "a.tif").read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        image.seek(1)
        second: int = image._frame_pos[1]  # type: ignore[attr-defined]
    (tmp_path / "a.tif").write_bytes(content[: second + 3])
    assert not list(examined.unreadable([tmp_path / "a.tif"]))


def test_what_cannot_be_converted_is_found_by_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not by a worker in the middle of the training."""
    page().save(tmp_path / "page.png")

    def fails(image: Image.Image) -> Image.Image:
        raise ValueError("conversion from XYZ to RGB not supported")

    monkeypatch.setattr(read_page, "_white_paper", fails)
    assert [reason for _, reason in examined.unreadable([tmp_path / "page.png"])] == [
        "not a readable image: conversion from XYZ to RGB not supported"
    ]


def test_drawing_commands_are_refused_without_running_them(tmp_path: Path) -> None:
    """By their content: a PostScript file is a program, and Pillow would run it where Ghostscript is installed."""
    page().save(tmp_path / "page.eps")
    (tmp_path / "page.eps").rename(tmp_path / "page.jpg")
    assert [reason for _, reason in examined.unreadable([tmp_path / "page.jpg"])] == [
        "not a readable image: the file has drawing commands (EPS) and not pixels; export it as PNG"
    ]
    with pytest.raises(OSError, match="drawing commands"):
        read_page.page_shape(tmp_path / "page.jpg")


def test_a_damaged_file_is_refused_by_the_check_or_read_by_all(tmp_path: Path) -> None:
    """With an OSError or a ValueError, whatever Pillow's decoder raises; and its header has the shape that is read."""
    chance, path = random.Random(0), tmp_path / "page"
    path.write_text("<html>")
    assert [reason for _, reason in examined.unreadable([path])] == [
        "not a readable image: cannot identify the format of the image"
    ]
    outcomes = set()
    for mode in ("RGB", "P", "I;16"):
        for name, content in files_of(pages()[mode][0].transpose(Image.Transpose.ROTATE_90), 6).items():
            if "deflate" in name:  # libtiff prints each error
                continue
            for _ in range(12):
                data = bytearray(content)
                data[chance.randrange(min(len(data), chance.choice((60, 400, len(data)))))] = chance.randrange(256)
                path.write_bytes(data[: chance.choice((None, chance.randrange(1, len(data))))])
                refused = bool(list(examined.unreadable([path])))
                for longest in (None, 40):
                    try:
                        shape = read_page.read_page(path, longest).shape[:2]
                        assert not refused and shape == read_page.fitted(read_page.page_shape(path), longest), name
                    except (OSError, ValueError):
                        assert refused, name
                outcomes.add(refused)
    assert outcomes == {False, True}


def test_a_file_object_is_read_as_its_path(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 8
    for name in ("page.png", "page.tif", "page.jpg"):
        page().save(tmp_path / name, exif=exif)
        content = io.BytesIO((tmp_path / name).read_bytes())
        assert apart(read_page.read_page(content), read_page.read_page(str(tmp_path / name))) == 0


def test_the_reader_needs_nothing_of_the_trainer() -> None:
    source = Path(read_page.__file__).read_text()
    assert "trainer" not in [
        line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("from ", "import "))
    ]
