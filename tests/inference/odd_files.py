"""Sixty files that are no ordinary pictures, for the tests of reading."""

import io
import os
import struct
import zlib

import numpy as np
from PIL import Image


def scene(size=(60, 80)):
    """A dark shirt on white, RGB."""
    image = np.full((*size[::-1], 3), 255, np.uint8)
    image[20:60, 15:45] = 60
    image[20:30, 5:55] = 60
    return Image.fromarray(image)


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_of(width, height, content=b"", bits=8, colour=2):
    """A PNG that says it is so large, and holds little."""

    def chunk(name, data):
        named = name + data
        return struct.pack(">I", len(data)) + named + struct.pack(">I", zlib.crc32(named))

    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(content))
        + chunk(b"IEND", b"")
    )


def good():
    """Names and contents of odd files that are pictures all the same."""
    rgb, ramp = scene(), np.arange(80 * 60, dtype=np.uint16).reshape(80, 60) * 13
    grey, clear = rgb.convert("L"), rgb.copy()
    clear.putalpha(grey.point(lambda v: 255 if v < 200 else 0))
    palette = rgb.quantize(8)
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = [rgb, rgb.rotate(90), rgb.rotate(180)]
    moving = {"save_all": True, "append_images": frames[1:]}
    yield "plain.png", encoded(rgb, "PNG")
    yield "plain.jpg", encoded(rgb, "JPEG")
    yield "plain.webp", encoded(rgb, "WEBP")
    yield "plain.gif", encoded(rgb, "GIF")
    yield "plain.bmp", encoded(rgb, "BMP")
    yield "plain.tiff", encoded(rgb, "TIFF")
    yield "lossless.webp", encoded(clear, "WEBP", lossless=True)
    yield "packed.tiff", encoded(rgb, "TIFF", compression="tiff_lzw")
    yield "grey.png", encoded(grey, "PNG")
    yield "grey.jpg", encoded(grey, "JPEG")
    yield "bits.png", encoded(rgb.convert("1"), "PNG")
    yield "bits.tiff", encoded(rgb.convert("1"), "TIFF", compression="group4")
    yield "palette.png", encoded(palette, "PNG")
    yield "palette-clear.png", encoded(palette, "PNG", transparency=0)
    yield "palette-alphas.png", encoded(palette, "PNG", transparency=bytes(range(8)))
    yield "palette.bmp", encoded(palette, "BMP")
    yield "colour-key.png", encoded(rgb, "PNG", transparency=(255, 255, 255))
    yield "alpha.png", encoded(clear, "PNG")
    yield "grey-alpha.png", encoded(clear.convert("LA"), "PNG")
    yield "all-clear.png", encoded(Image.new("RGBA", (40, 40), (0, 0, 0, 0)), "PNG")
    yield "cmyk.jpg", encoded(rgb.convert("CMYK"), "JPEG")
    yield "cmyk.tiff", encoded(rgb.convert("CMYK"), "TIFF")
    yield "lab.tiff", encoded(Image.new("LAB", (9, 9), (120, 9, 9)), "TIFF")
    yield "16-bit.png", encoded(Image.fromarray(ramp), "PNG")
    yield "16-bit.tiff", encoded(Image.fromarray(ramp), "TIFF")
    yield "32-bit.tiff", encoded(Image.fromarray(ramp.astype(np.int32) * 1000), "TIFF")
    yield "float.tiff", encoded(Image.fromarray(np.float32(ramp) / 70000), "TIFF")
    yield "nan.tiff", encoded(Image.fromarray(np.full((9, 9), np.nan, np.float32)), "TIFF")
    yield "turned.jpg", encoded(rgb, "JPEG", exif=turned)
    yield "turned.png", encoded(rgb, "PNG", exif=turned)
    yield "broken-exif.jpg", encoded(rgb, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    yield "progressive.jpg", encoded(rgb, "JPEG", progressive=True)
    yield "animated.gif", encoded(rgb, "GIF", **moving)
    yield "animated.webp", encoded(rgb, "WEBP", **moving)
    yield "animated.png", encoded(rgb, "PNG", **moving)
    yield "pages.tiff", encoded(rgb, "TIFF", **moving)
    yield "one.png", encoded(Image.new("RGB", (1, 1), (9, 200, 9)), "PNG")
    yield "line.png", encoded(Image.new("L", (1, 3000), 9), "PNG")
    yield "row.png", encoded(Image.new("L", (3000, 2), 200), "PNG")
    yield "black.png", encoded(Image.new("RGB", (50, 50)), "PNG")
    yield "white.jpg", encoded(Image.new("RGB", (50, 50), "white"), "JPEG")
    yield "huge-but-allowed.png", encoded(Image.new("1", (7000, 7000)), "PNG")
    yield "jpeg-called.png", encoded(rgb, "JPEG")
    yield "no suffix", encoded(rgb, "PNG")
    yield "with spaces [1] *.png", encoded(rgb, "PNG")
    yield "ünïcödé 衣服 👗.png", encoded(rgb, "PNG")
    yield "line\nbreak\x1b[31m.png", encoded(rgb, "PNG")
    yield os.fsdecode(b"\xff\xfe.png"), encoded(rgb, "PNG")
    yield "--show", encoded(rgb, "PNG")
    yield "trailing.png", encoded(rgb, "PNG") + b"more" * 1000


def bad():
    """Names of files that are no pictures, their contents, and what has to be said of them."""
    png, jpeg = encoded(scene(), "PNG"), encoded(scene(), "JPEG")
    rng = np.random.default_rng(0)
    canvas = struct.pack("<I", 0x10) + (16382).to_bytes(3, "little") * 2
    body = b"WEBPVP8X" + struct.pack("<I", 10) + canvas
    yield "empty.png", b"", "is empty"
    yield "text.png", b"this is a text\n" * 50, "no picture"
    yield "noise.jpg", rng.bytes(5000), "no picture"
    yield "page.gif", b"<html><body>not found</body></html>", "no picture"
    yield "cut.png", png[: len(png) // 2], "damaged"
    yield "cut.jpg", jpeg[: len(jpeg) // 2], "damaged"
    yield "head.png", png[:8], "damaged"
    yield "head.jpg", jpeg[:4], "damaged"
    yield "nothing-inside.png", png_of(100, 100), "damaged"
    yield "zero.png", png_of(0, 0), "damaged"
    yield "bomb.png", png_of(20_000, 20_000, bytes(1000)), "too many pixels"
    yield "giant.png", png_of(2**31 - 1, 2**31 - 1), "50,000,000 are allowed"
    yield "bomb.webp", b"RIFF" + struct.pack("<I", len(body)) + body, "16,383 x 16,383"
    yield "drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no picture"
    yield "drawing.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture"
    yield "photo.heic", b"\0\0\0\x18ftypheic" + bytes(50), "JPEG or PNG"
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 255
    yield "flipped.png", bytes(flipped), "damaged"


def write(folder):
    """Write all of them, and what is no file; return paths, good ones by whether they are."""
    expected = {}
    for name, content in good():
        (folder / name).write_bytes(content)
        expected[str(folder / name)] = None
    for name, content, reason in bad():
        (folder / name).write_bytes(content)
        expected[str(folder / name)] = reason
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    (folder / "circle.png").symlink_to(folder / "circle.png")
    (folder / "nowhere.png").symlink_to(folder / "gone.png")
    others = {"pipe": "pipe", "folder": "no picture in", "circle": "circle", "nowhere": "nowhere"}
    expected |= {str(folder / f"{name}.png"): reason for name, reason in others.items()}
    expected |= {str(folder / "missing.png"): "no such file", "/dev/zero": "device"}
    expected |= {str(folder / ("x" * 300)): "too long", str(folder / "nul\0.png"): "null"}
    return expected
