"""A made corpus of what strangers' folders hold: odd and broken images, odd and broken captions files.

    python -m tests.corpus                    make it, try all of it, print the table
    python -m tests.corpus --keep DIR         leave the files there to look at
    python -m tests.corpus --mutations 100    a hundred random changes a format in place of 8

Each file comes with what must become of it: pixels known before they were encoded, or one error whose words are known. A file is
wrong when it gives other pixels, an error without its path, another exception, takes over LIMIT seconds or over MEMORY bytes.
"""

import argparse
import base64
import io
import json
import os
import random
import re
import resource
import signal
import socket
import struct
import sys
import tempfile
import unicodedata
import zlib
from collections import Counter
from multiprocessing import Pipe
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile
from PIL import Image, ImageOps

from models.dataset import VisionTextDataset, open_image, read_captions

LIMIT = 10  # seconds a file, generous: the slowest one takes under one
MEMORY = 4 << 30  # bytes of address space; a bomb of the corpus asks for 10 to 600 GB
PLAIN = "what Pillow decodes by itself"
CUT = "truncated|broken|cannot|decod|codec|Truncated|buffer|not enough|unrecognized|seek|error|Error"  # a damaged file: any reason


class Case(NamedTuple):
    """`want`: pixels (H, W, 3), PLAIN, or for a captions file [(name, caption)]; None where there is nothing to be had.
    `error`: regular expression of the message; None where there must be none. With both, either is right."""

    kind: str
    path: Path
    want: object = None
    error: str = None
    close: float = 0.0  # largest mean difference from `want`, of 255; 0 means that no value is off by more than a rounding
    images: Path = None  # of a captions file: its folder of images, where that matters


def scene(height=40, width=56):
    """(H, W, 3) uint8, smooth, so that JPEG keeps it, and unlike each of its own mirror images and turns."""
    y, x = np.mgrid[:height, :width] / np.array([height, width]).reshape(2, 1, 1)
    return np.stack(
        [40 + 180 * x, 220 - 150 * y, 30 + 200 * np.exp(-8 * ((x - 0.3) ** 2 + (y - 0.7) ** 2))], -1
    ).astype(np.uint8)


RGB = scene()
GREY, ALPHA = RGB[:, :, 0], RGB[:, :, 2]


def three(grey):
    return np.repeat(np.asarray(grey)[:, :, None], 3, axis=2)


def on_white(colour, alpha):
    """(H, W, 3) of colours (H, W, 3) and alphas (H, W) from 0 to 255."""
    alpha = np.asarray(alpha, float)[:, :, None] / 255
    return (colour * alpha + 255 * (1 - alpha)).round().astype(np.uint8)


def ink(cmyk):
    """(H, W, 4) -> (H, W, 3): what paper shows under that much ink."""
    return ((255.0 - cmyk[:, :, :3]) * (255 - cmyk[:, :, 3:]) / 255).round().astype(np.uint8)


def saved(pixels, format, mode=None, **options):
    """The bytes Pillow writes for an array or an image."""
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(file, format, **options)
    return file.getvalue()


def chunk(name, data, crc=0):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data) ^ crc)


def png(samples, depth, colour, interlaced=False, before=b"", after=b"", crc=0, size=None):
    """A PNG written from its specification: samples (H, W, C), any depth and colour type, Adam7 or not."""
    height, width = samples.shape[:2]
    passes = [
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ]
    data = b""
    for x, y, dx, dy in passes if interlaced else [(0, 0, 1, 1)]:
        for row in samples[y::dy, x::dx].astype(">u2") if x < width else []:
            bits = np.unpackbits(row.reshape(-1, 1).view(np.uint8), axis=1)[:, 16 - depth :]
            data += b"\0" + np.packbits(bits).tobytes()
    header = struct.pack(">IIBBBBB", *(size or (width, height)), depth, colour, 0, 0, interlaced)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + before
        + chunk(b"IDAT", zlib.compress(data), crc)
        + chunk(b"IEND", b"")
        + after
    )


def tiff(data, tags, order="<"):
    """A TIFF of one strip from its specification; `tags` {number: value} beside the strip's own."""
    tags = {256: 56, 257: 40, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 40, 279: len(data)} | tags
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    return (
        {"<": b"II*\0", ">": b"MM\0*"}[order]
        + struct.pack(order + "I", 8 + len(data))
        + data
        + struct.pack(order + "H", len(tags))
        + entries
        + bytes(4)
    )


def tifffiled(pixels, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}
FINE = {
    "jpg": dict(format="JPEG", quality=95, subsampling=0),
    "png": dict(format="PNG"),
    "webp": dict(format="WEBP", lossless=True),
    "avif": dict(format="AVIF", quality=95, subsampling="4:4:4"),
    "tif": dict(format="TIFF"),
}
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
# An arithmetic-coded JPEG of 16 x 8 grey pixels, 16 x + 2 y, as libjpeg-turbo 3.2 wrote it (no Python package writes these).
ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAIBAQEBAQIBAQECAgICAgQDAgICAgUEBAMEBgUGBgYFBgYGBwkIBgcJBwYGCAsICQoKCgoKBggLDAsKDAkKCgr"
    "/yQALCAAIABABAREA/8wABgAQEAX/2gAIAQEAAD8A/wDr9D+TLdp9wzzL89/w7jgAyja4gP/Z"
)


def whole():
    """{name: bytes} of the same scene in every format and coding: what is cut and mutated below."""
    files = {f"plain.{end}": saved(RGB, **options) for end, options in FINE.items()}
    frames = [Image.fromarray(np.roll(RGB, 9 * n, axis=1)) for n in range(3)]
    return files | {
        "progressive.jpg": saved(RGB, "JPEG", quality=95, progressive=True),
        "420.jpg": saved(RGB, "JPEG", quality=95),
        "grey.jpg": saved(GREY, "JPEG", quality=95),
        "interlaced.png": png(RGB, 8, 2, True),
        "palette.gif": saved(RGB, "GIF", mode="P"),
        "animated.gif": saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "animated.webp": saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True),
        "animated.png": saved(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        "lossy.webp": saved(RGB, "WEBP", quality=95),
        "plain.bmp": saved(RGB, "BMP"),
        "plain.ppm": saved(RGB, "PPM"),
        "plain.jp2": saved(RGB, "JPEG2000"),
        "plain.j2k": saved(RGB, "JPEG2000", no_jp2=True),
        "deflated.tif": saved(RGB, "TIFF", compression="tiff_deflate"),
        "lzw.tif": saved(RGB, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": saved(RGB, "TIFF", compression="jpeg", quality=95),
        "two.mpo": saved(frames[0], "MPO", save_all=True, append_images=frames[1:2]),
    }


LOSSY = {
    "plain.jpg": 2,
    "progressive.jpg": 4,
    "420.jpg": 4,
    "grey.jpg": 2,
    "lossy.webp": 4,
    "plain.avif": 3,
    "palette.gif": 20,
    "animated.gif": 20,
    "jpeg.tif": 4,
    "two.mpo": 5,
    "arithmetic.jpg": 1,
}


def good_images():
    """(kind, name, bytes, pixels, closeness) of files that must decode."""
    for name, data in whole().items():
        yield (
            "every format, whole",
            name,
            data,
            three(GREY) if name == "grey.jpg" else RGB,
            LOSSY.get(name, 0),
        )
        yield (
            "trailing garbage",
            name,
            data + b"\0garbage\xff\xd8" * 50,
            three(GREY) if name == "grey.jpg" else RGB,
            LOSSY.get(name, 0),
        )
    yield (
        "every format, whole",
        "arithmetic.jpg",
        ARITHMETIC,
        three(16 * np.arange(16) + 2 * np.arange(8)[:, None]),
        1,
    )
    ends = [".jpg", ".png", ".gif", ".txt", "", ".JPEG", ".heic"]
    for end, data in zip(
        ends, [FINE["png"], FINE["webp"], FINE["tif"], FINE["png"], FINE["avif"], FINE["webp"], FINE["jpg"]]
    ):
        yield "wrong extension", f"other{end}", saved(RGB, **data), RGB, 3
    for name in (
        "with space",
        "café",
        unicodedata.normalize("NFD", "café"),
        "猫",
        "a'b\"c",
        "new\nline",
        "#%&",
        "-rf",
        "🐈",
        "x" * 200,
    ):
        yield "odd names", f"{name}.png", saved(RGB, "PNG"), RGB, 0

    for turn, stored in STORED.items():
        for end, options in FINE.items():
            if end == "tif":
                data = tifffiled(
                    np.ascontiguousarray(stored(RGB)), photometric="rgb", extratags=[(274, 3, 1, turn)]
                )
            else:
                data = saved(np.ascontiguousarray(stored(RGB)), exif=exif(turn), **options)
            yield "EXIF, eight ways", f"{turn}.{end}", data, RGB, LOSSY.get(f"plain.{end}", 0)
        data = saved(np.ascontiguousarray(stored(GREY)), "JPEG", quality=95, exif=exif(turn))
        yield "EXIF, eight ways", f"grey{turn}.jpg", data, three(GREY), 2
    turned = np.ascontiguousarray(STORED[6](RGB))
    yield "EXIF, eight ways", "xmp.jpg", saved(turned, xmp=XMP, **FINE["jpg"]), RGB, 2
    yield (
        "EXIF, eight ways",
        "xmp.png",
        png(turned, 8, 2, before=chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)),
        RGB,
        0,
    )
    for value in (0, 9, 65535):
        yield (
            "EXIF, eight ways",
            f"no such turn {value}.jpg",
            saved(RGB, exif=exif(value), **FINE["jpg"]),
            RGB,
            2,
        )
    yield (
        "EXIF, eight ways",
        "garbage.jpg",
        saved(RGB, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(range(200)), **FINE["jpg"]),
        RGB,
        2,
    )
    bomb = (
        b"Exif\0\0II*\0\x08\0\0\0\x02\0"
        + struct.pack("<HHII", 0x112, 3, 0xFFFFFFFF, 8)
        + struct.pack("<HHII", 0x8769, 4, 1, 8)
    )
    yield "EXIF, eight ways", "bomb.jpg", saved(RGB, exif=bomb + struct.pack("<I", 8), **FINE["jpg"]), RGB, 2

    types, kind = "PNG, each depth and type", "transparency"
    colours = RGB[:: 40 // 4, :: 56 // 4].reshape(-1, 3)[:16]
    for interlaced in (False, True):
        for depth in (1, 2, 4, 8, 16):
            top, of = 2**depth - 1, f"{depth}{'i' * interlaced}"
            levels = (GREY.astype(int) * top // 255)[:, :, None]
            shown = three((levels[:, :, 0] / top * 255).round())
            yield types, f"grey{of}.png", png(levels, depth, 0, interlaced), shown, 0
            key = levels[20, 28, 0]
            if depth <= 8:
                clear = on_white(shown, 255 * (levels[:, :, 0] != key))
                yield (
                    kind,
                    f"greykey{of}.png",
                    png(levels, depth, 0, interlaced, chunk(b"tRNS", struct.pack(">H", key))),
                    clear,
                    0,
                )
                index = (np.arange(40)[:, None] + np.arange(56)) % min(16, top + 1)
                table, alphas = chunk(b"PLTE", colours[: top + 1].tobytes()), np.arange(16)[: top + 1] * 17
                yield (
                    types,
                    f"palette{of}.png",
                    png(index[:, :, None], depth, 3, interlaced, table),
                    colours[index],
                    0,
                )
                data = png(
                    index[:, :, None], depth, 3, interlaced, table + chunk(b"tRNS", bytes(alphas.tolist()))
                )
                yield kind, f"palette{of}.png", data, on_white(colours[index], alphas[index]), 0
            if depth >= 8:
                deep = RGB.astype(int) * (top // 255) + (top > 255) * 77 * (RGB < 255)
                alpha = ALPHA[:, :, None].astype(int) * (top // 255)
                yield types, f"rgb{of}.png", png(deep, depth, 2, interlaced), RGB, 0
                data = png(np.dstack([deep[:, :, :1], alpha]), depth, 4, interlaced)
                yield kind, f"la{of}.png", data, on_white(three(GREY), ALPHA), 0
                yield (
                    kind,
                    f"rgba{of}.png",
                    png(np.dstack([deep, alpha]), depth, 6, interlaced),
                    on_white(RGB, ALPHA),
                    0,
                )
                if depth == 8:
                    data = png(
                        deep,
                        depth,
                        2,
                        interlaced,
                        chunk(b"tRNS", struct.pack(">HHH", *deep[20, 28].tolist())),
                    )
                    yield kind, f"rgbkey{of}.png", data, on_white(RGB, 255 * (deep != deep[20, 28]).any(2)), 0
    rgba, la = np.dstack([RGB, ALPHA]), np.dstack([GREY, ALPHA])
    yield kind, "rgba.webp", saved(rgba, "WEBP", lossless=True), on_white(RGB, ALPHA), 0
    yield kind, "rgba.avif", saved(rgba, "AVIF", quality=95, subsampling="4:4:4"), on_white(RGB, ALPHA), 3
    yield kind, "rgba.jp2", saved(rgba, "JPEG2000"), on_white(RGB, ALPHA), 0
    yield kind, "la.jp2", saved(la, "JPEG2000"), on_white(three(GREY), ALPHA), 0
    yield (
        kind,
        "rgba.tif",
        tifffiled(rgba, photometric="rgb", extrasamples=["unassalpha"]),
        on_white(RGB, ALPHA),
        0,
    )
    yield kind, "rgba.bmp", saved(rgba, "BMP"), RGB, 0  # BI_RGB: the fourth byte is not alpha
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = (
        b"BM"
        + struct.pack("<IIIIiiHHIIiiII", 122 + rgba.size, 0, 122, 108, 56, -40, 1, 32, 3, 0, 0, 0, 0, 0)
        + masks
    )
    yield (
        kind,
        "alpha.bmp",
        header.ljust(122, b"\0") + rgba[:, :, [2, 1, 0, 3]].tobytes(),
        on_white(RGB, ALPHA),
        0,
    )
    clear = Image.fromarray(((np.arange(40)[:, None] + np.arange(56)) % 2).astype(np.uint8), "P")
    clear.putpalette([200, 30, 20, 20, 90, 200])
    checked = np.array([[255, 255, 255], [20, 90, 200]], np.uint8)[np.asarray(clear)]
    yield kind, "index.gif", saved(clear, "GIF", transparency=0), checked, 0
    others = [clear.transpose(Image.Transpose.ROTATE_180), clear.crop((0, 0, 8, 8)).resize((56, 40))]
    for disposal in range(4):
        data = saved(clear, "GIF", save_all=True, append_images=others, transparency=0, disposal=disposal)
        yield "animations", f"disposal{disposal}.gif", data, checked, 0
    hidden = png(
        RGB, 8, 2, before=chunk(b"acTL", struct.pack(">II", 1, 0))
    )  # an APNG whose default image is no frame
    yield "animations", "hidden.png", hidden, RGB, 0

    cmyk = np.dstack([255 - RGB, GREY // 4])
    data = saved(Image.fromarray(cmyk, "CMYK"), "JPEG", quality=97, subsampling=0)
    at = data.index(b"\xff\xee")
    bare = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]
    yield "CMYK", "adobe.jpg", data, ink(cmyk), 2
    yield (
        "CMYK",
        "bare.jpg",
        bare,
        ink(cmyk),
        2,
    )  # without the marker taken as Adobe's all the same, as browsers do
    yield "CMYK", "cmyk.tif", tifffiled(cmyk, photometric="separated"), ink(cmyk), 0
    yield "CMYK", "cmyk16.tif", tifffiled(cmyk.astype(np.uint16) * 257, photometric="separated"), ink(cmyk), 0
    yield (
        "CMYK",
        "turned.jpg",
        saved(
            Image.fromarray(np.ascontiguousarray(STORED[8](cmyk)), "CMYK"),
            "JPEG",
            quality=97,
            subsampling=0,
            exif=exif(8),
        ),
        ink(cmyk),
        2,
    )
    ycck = np.dstack([255 - np.asarray(Image.fromarray(255 - RGB).convert("YCbCr")), GREY // 4])
    data = bytearray(saved(Image.fromarray(ycck, "CMYK"), "JPEG", quality=97, subsampling=0))
    data[data.index(b"Adobe") + 11] = 2
    yield "CMYK", "ycck.jpg", bytes(data), ink(cmyk), 3

    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for end, options in FINE.items():
        for name, icc in (("srgb", profile), ("broken", profile[:100] + b"\xff" * 40)):
            yield (
                "ICC profiles",
                f"{name}.{end}",
                saved(RGB, icc_profile=icc, **options),
                RGB,
                LOSSY.get(f"plain.{end}", 0),
            )

    kind = "TIFF, 16-bit, tiled, paged"
    deep, deep_rgb = GREY.astype(np.uint16) * 257, RGB.astype(np.uint16) * 257
    for order in "<>":
        of = {"<": "II", ">": "MM"}[order]
        yield (
            kind,
            f"grey16{of}.tif",
            tifffiled(deep, photometric="minisblack", byteorder=order),
            three(GREY),
            0,
        )
        yield kind, f"rgb16{of}.tif", tifffiled(deep_rgb, photometric="rgb", byteorder=order), RGB, 0
    more = {
        "inverse8": tifffiled(255 - GREY, photometric="miniswhite"),
        "tiled": tifffiled(RGB, photometric="rgb", tile=(16, 16)),
        "tiled16": tifffiled(deep, photometric="minisblack", tile=(16, 16)),
        "planes": tifffiled(
            np.ascontiguousarray(RGB.transpose(2, 0, 1)), photometric="rgb", planarconfig="separate"
        ),
        "big": tifffiled(RGB, photometric="rgb", bigtiff=True),
        "deflate": tifffiled(RGB, photometric="rgb", compression="zlib"),
        "predictor": tifffiled(RGB, photometric="rgb", compression="zlib", predictor=True),
        "pages": tifffiled(np.stack([RGB] + [RGB[::-1]] * 300), photometric="rgb"),
        "strips": tifffiled(RGB, photometric="rgb", rowsperstrip=3),
        "extra": tifffiled(np.dstack([RGB, ALPHA]), photometric="rgb", extrasamples=[0]),
    }
    grey = {"inverse8", "tiled16"}
    for name, data in more.items():
        yield kind, f"{name}.tif", data, three(GREY) if name in grey else RGB, 0
    yield kind, "bit.tif", tifffiled(GREY > 127, photometric="minisblack"), three((GREY > 127) * 255), 0
    yield kind, "grey16.pgm", b"P5 56 40 65535\n" + deep.astype(">u2").tobytes(), three(GREY), 0
    yield kind, "grey10.pgm", b"P5 56 40 1023\n" + (deep // 64).astype(">u2").tobytes(), three(GREY), 0
    yield kind, "rgb16.ppm", b"P6 56 40 65535\n" + (deep_rgb).astype(">u2").tobytes(), RGB, 0
    yield kind, "grey16.jp2", saved(deep, "JPEG2000"), three(GREY), 0

    for height, width in (
        (1, 1),
        (1, 2),
        (2, 1),
        (1, 20_000),
        (20_000, 1),
        (1, 65_535),
        (65_535, 1),
        (3, 65_535),
    ):
        pixels = scene(height, width)
        yield "sizes", f"{width}x{height}.png", saved(pixels, "PNG"), pixels, 0
    for height, width in ((1, 1), (1, 20_000), (65_500, 1)):
        yield (
            "sizes",
            f"{width}x{height}.jpg",
            saved(scene(height, width), **FINE["jpg"]),
            scene(height, width),
            3,
        )
        yield "sizes", f"{width}x{height}.bmp", saved(scene(height, width), "BMP"), scene(height, width), 0
    yield "sizes", "16383x1.webp", saved(scene(1, 16_383), "WEBP", lossless=True), scene(1, 16_383), 0


def sized(data, old, new):
    """`data` with the packed size `old`, which must be in it, replaced by `new`."""
    assert old in data
    return data.replace(old, new)


def refused_images():
    """(kind, name, bytes, words of the error) of files that must not decode."""
    kind = "not images"
    yield kind, "empty.jpg", b"", "empty"
    yield kind, "zeros.jpg", bytes(10_000), "not an image"
    pages = {
        "page.jpg": b"<!DOCTYPE html><html>404</html>",
        "lower.png": b"\r\n<html><head>",
        "bom.jpg": b"\xef\xbb\xbf<!doctype HTML>",
    }
    for name, data in pages.items():
        yield kind, name, data, "web page"
    yield (
        kind,
        "pointer.jpg",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "git lfs pull",
    )
    yield kind, "drawing.svg", b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"></svg>', "SVG"
    yield kind, "drawing.jpg", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"
    for brand in (b"heic", b"heix", b"mif1", b"msf1"):
        yield (
            kind,
            f"{brand.decode()}.heic",
            struct.pack(">I", 24) + b"ftyp" + brand + bytes(500),
            "pillow-heif",
        )
    yield kind, "film.jpg", struct.pack(">I", 24) + b"ftypisom" + bytes(500), "film"
    yield kind, "raw.psd", b"8BPS\0\1" + bytes(500), "Photoshop"
    other = {
        "text.jpg": b"hello",
        "error.jpg": b'{"message": "limit"}',
        "zip.jpg": b"PK\3\4" + bytes(99),
        "pickle.png": b"\x80\x04\x95.",
    }
    for name, data in other.items():
        yield kind, name, data, "not an image"
    for format in ("ICO", "TGA", "PCX", "EPS", "PDF", "SGI", "DDS", "ICNS"):
        yield kind, f"other.{format.lower()}", saved(scene(64, 64), format), "not an image"
    kind = "no known white"
    packed = np.packbits(
        np.unpackbits(
            ((GREY.astype(int) * 4095 + 127) // 255).astype(">u2").reshape(-1, 1).view(np.uint8), axis=1
        )[:, 4:]
    )
    key = GREY[:, :, None].astype(int) * 257
    yield (
        kind,
        "float.tif",
        tifffiled(RGB[:, :, 0] / np.float32(255), photometric="minisblack"),
        "no known white",
    )
    yield kind, "rgbfloat.tif", tifffiled(RGB / np.float32(255), photometric="rgb"), CUT
    yield kind, "uint32.tif", tifffiled(GREY.astype(np.uint32), photometric="minisblack"), "no known white"
    yield kind, "int16.tif", tifffiled(GREY.astype(np.int16), photometric="minisblack"), "no known white"
    yield kind, "grey12.tif", tiff(packed.tobytes(), {258: 12}), "BitsPerSample 12.*no known white"
    yield (
        kind,
        "inverse16.tif",
        tifffiled(65535 - key[:, :, 0].astype(np.uint16), photometric="miniswhite"),
        "no known white",
    )
    yield kind, "key16.png", png(key, 16, 0, before=chunk(b"tRNS", b"\0\7")), "transparency"
    yield (
        kind,
        "rgbkey16.png",
        png(np.dstack([key] * 3), 16, 2, before=chunk(b"tRNS", b"\0\7" * 3)),
        "transparency",
    )
    yield kind, "float.pfm", b"Pf\n2 2\n-1.0\n" + np.ones(4, "<f4").tobytes(), "no known white"
    yield kind, "double.tif", tifffiled(GREY.astype(float), photometric="minisblack"), CUT

    kind, size = "bombs", "pixels"
    files = whole()
    for width, height in (
        (100_000, 100_000),
        (65_535, 65_535),
        (10_000, 9_000),
        (2**31 - 1, 2**31 - 1),
        (2**31 - 1, 1),
        (1, 2**30),
    ):
        yield kind, f"{width}x{height}.png", png(RGB, 8, 2, size=(width, height)), f"{size}|truncated|memory"
    data = files["progressive.jpg"]
    at = data.rindex(b"\xff\xda")
    yield (
        kind,
        "scans.jpg",
        sized(data, struct.pack(">HH", 40, 56), struct.pack(">HH", 9000, 9000))[:-2] + data[at:-2] * 20_000,
        "scans",
    )
    yield (
        kind,
        "header.jpg",
        sized(files["plain.jpg"], struct.pack(">HH", 40, 56), struct.pack(">HH", 65_000, 65_000)),
        size,
    )
    yield (
        kind,
        "side.jpg",
        sized(files["plain.jpg"], struct.pack(">HH", 40, 56), struct.pack(">HH", 1, 65_535)),
        CUT,
    )
    yield (
        kind,
        "header.gif",
        sized(files["palette.gif"], struct.pack("<HH", 56, 40), struct.pack("<HH", 65_535, 65_535)),
        size,
    )
    yield (
        kind,
        "header.bmp",
        sized(files["plain.bmp"], struct.pack("<ii", 56, 40), struct.pack("<ii", 2**30, 2**30)),
        size,
    )
    yield kind, "header.ppm", sized(files["plain.ppm"], b"56 40", b"99999 99999"), size
    yield kind, "digits.ppm", sized(files["plain.ppm"], b"56 40", b"9" * 5000 + b" 40"), CUT
    yield (
        kind,
        "header.jp2",
        sized(files["plain.jp2"], struct.pack(">II", 40, 56), struct.pack(">II", 90_000, 90_000)),
        size,
    )
    yield (
        kind,
        "header.j2k",
        sized(files["plain.j2k"], struct.pack(">II", 56, 40), struct.pack(">II", 90_000, 90_000)),
        size,
    )
    yield (
        kind,
        "header.avif",
        sized(files["plain.avif"], struct.pack(">II", 56, 40), struct.pack(">II", 60_000, 60_000)),
        CUT,
    )
    canvas = sized(files["animated.webp"], bytes([55, 0, 0, 39, 0, 0]), b"\xfe\x3f\0\xfe\x3f\0")
    yield kind, "header.webp", canvas, f"{size}|{CUT}"
    yield kind, "header.tif", tiff(bytes(99), {256: 60_000, 257: 60_000, 278: 60_000}), size
    yield kind, "strip.tif", tiff(bytes(99), {279: 2**32 - 1}), CUT
    yield (
        kind,
        "tile.tif",
        tiff(bytes(99), {256: 100, 257: 100, 322: 2**30, 323: 2**30, 324: 8, 325: 99}),
        CUT,
    )
    for name in (b"zTXt", b"iTXt"):
        text = {b"zTXt": b"Comment\0\0", b"iTXt": b"Comment\0\1\0\0\0"}[name] + zlib.compress(
            bytes(300 << 20), 1
        )
        yield kind, f"{name.decode()}.png", png(RGB, 8, 2, before=chunk(name, text)), CUT
    kind = "damaged, by kind"
    yield (
        kind,
        "crc.png",
        png(RGB, 8, 2).replace(b"IHDR" + struct.pack(">I", 56), b"IHDR" + struct.pack(">I", 57)),
        CUT,
    )
    yield kind, "no palette.png", png(np.zeros((4, 4, 1), int), 8, 3), "no palette"
    yield kind, "depth.png", png(np.zeros((4, 4, 1), int), 7, 0), CUT
    yield kind, "zero wide.png", png(RGB, 8, 2, size=(0, 40)), CUT
    yield kind, "zero.ppm", b"P6 0 0 255\n", CUT
    yield kind, "head only.jpg", b"\xff\xd8\xff\xe0", CUT
    yield kind, "end only.jpg", b"\xff\xd8\xff\xd9", CUT


def harmless_bombs():
    """(name, bytes): small images with something huge in or behind them, which need not be read."""
    data = b"".join(b"\0" + row.tobytes() for row in RGB) + bytes(200 << 20)
    yield "idat.png", png(RGB, 8, 2)[:33] + chunk(b"IDAT", zlib.compress(data, 1)) + chunk(b"IEND", b"")
    yield "icc.png", png(RGB, 8, 2, before=chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(300 << 20), 1)))
    yield "pages.tif", tifffiled(np.stack([RGB] * 3000), photometric="rgb")
    yield "circle.tif", circle(tifffiled(RGB, photometric="rgb", software=False))


def circle(data):
    """A TIFF whose last directory names the first as the one that follows."""
    at = struct.unpack("<I", data[4:8])[0]
    end = at + 2 + 12 * struct.unpack("<H", data[at : at + 2])[0]
    return data[:end] + struct.pack("<I", at) + data[end + 4 :]


def mutated(data, rng):
    """`data` with 1 to 8 changes: a bit, a byte, a run of bytes, a run cut out or doubled; half of them in the first 200 bytes."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at, length = rng.randrange(min(len(data), rng.choice((200, len(data))))), rng.randint(1, 16)
        how = rng.randrange(5)
        if how == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            data[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif how == 2:
            data[at : at + length] = rng.choice((bytes(length), b"\xff" * length, rng.randbytes(length)))
        elif how == 3 and len(data) > 40:
            del data[at : at + length]
        else:
            data[at:at] = data[at : at + length]
    return bytes(data)


def make_images(folder, mutations=8):
    """Write the corpus of images under `folder`, which must be empty, and return its Cases. The same every time."""
    cases, folder = [], Path(folder)

    def add(kind, name, data, *rest):
        path = folder / re.sub("[^a-z0-9]+", "-", kind.lower()) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if data is not None:
            path.write_bytes(data)
        cases.append(Case(kind, path, *rest))
        return path

    for kind, name, data, pixels, close in good_images():
        add(kind, name, data, pixels, None, close)
    for kind, name, data, error in refused_images():
        add(kind, name, data, None, error)
    for name, data in harmless_bombs():
        add("bombs", name, data, RGB, CUT)
    for name, data in whole().items():
        pixels = three(GREY) if name == "grey.jpg" else RGB
        for tenth in range(10):
            add(
                "truncated",
                f"{tenth}0% {name}",
                data[: len(data) * tenth // 10],
                pixels,
                CUT + "|empty|not an image",
                LOSSY.get(name, 0),
            )
        for left in (1, 2, 3, 8):
            add("truncated", f"{left} less {name}", data[:-left], pixels, CUT, LOSSY.get(name, 0))
        for number in range(mutations):
            changed = mutated(data, random.Random(f"{name}/{number}"))
            add("mutated", f"{number} {name}", changed, PLAIN, ".", 0)

    other = "not files"
    os.mkfifo(add(other, "pipe.jpg", None, None, "pipe"))
    add(other, "folder.jpg", None, None, "folder").mkdir()
    (circle := add(other, "circle.jpg", None, None, "symbolic links")).symlink_to(circle)
    add(other, "one.jpg", None, None, "symbolic links").symlink_to("two.jpg")
    add(other, "two.jpg", None, None, "symbolic links").symlink_to("one.jpg")
    add(other, "nowhere.jpg", None, None, "No such file").symlink_to("gone.jpg")
    add(other, "missing.jpg", None, None, "No such file")
    add(other, "pipe behind a link.jpg", None, None, "pipe").symlink_to("pipe.jpg")
    add(other, "plain.jpg", saved(RGB, "PNG"), RGB)
    with socket.socket(socket.AF_UNIX) as s:
        here = os.getcwd()
        os.chdir(folder / "not-files")  # the path of a socket is at most 107 bytes long
        s.bind("socket.jpg")
        os.chdir(here)
    add(other, "socket.jpg", None, None, "socket")
    add(other, "unreadable.jpg", saved(RGB, "PNG"), None, "ermission").chmod(0)
    add(other, "linked.jpg", None, RGB).symlink_to("../every-format-whole/plain.png")
    return cases


HEAD = "image_name,comment\n"
ROWS = [("a.jpg", "a dog runs"), ("b.jpg", "two dogs, running")]
BODY = 'a.jpg,a dog runs\nb.jpg,"two dogs, running"\n'


def good_captions():
    """(kind, name, bytes, rows) of captions files that must be read."""
    codes, ends, names = "encodings", "line ends", "names and rows"
    yield codes, "plain.csv", HEAD + BODY, ROWS
    yield codes, "bom.csv", b"\xef\xbb\xbf" + (HEAD + BODY).encode(), ROWS
    yield codes, "bom and quotes.csv", b'\xef\xbb\xbf"image_name","comment"\n' + BODY.encode(), ROWS
    words = [
        "naïve café",
        unicodedata.normalize("NFD", "naïve café"),
        "猫が走る",
        "🐈 ❤️",
        "כלב",
        "\U0010ffff",
    ]
    words += ["a\u2028b", "a\u0085b", "a\x1cb", "a\u200db"]  # str.splitlines would cut at three of them
    yield (
        codes,
        "unicode.csv",
        HEAD + "".join(f"{w}.jpg,{w}\n" for w in words),
        [(f"{w}.jpg", w) for w in words],
    )
    yield (
        codes,
        "values.csv",
        HEAD + "NA,null\n001,1e3\n-1,=1+1\n",
        [("NA", "null"), ("001", "1e3"), ("-1", "=1+1")],
    )
    for name, end in (("crlf", "\r\n"), ("cr", "\r"), ("blank lines", "\n\n \n"), ("mixed", "\r\n\n")):
        yield ends, f"{name}.csv", (HEAD + BODY).replace("\n", end), ROWS
    yield ends, "no last.csv", (HEAD + BODY).rstrip("\n"), ROWS
    yield ends, "blank first.csv", "\n\r\n" + HEAD + BODY, ROWS
    rows = [("a.jpg", "a dog\nruns"), ("b.jpg", "a cat\r\nsits")]
    yield ends, "in quotes.csv", HEAD + 'a.jpg,"a dog\nruns"\nb.jpg,"a cat\r\nsits"\n', rows
    for name, separator in (("tab", "\t"), ("pipe", "|"), ("semicolon", ";"), ("comma", ",")):
        rows = [("a.jpg", "a dog runs"), ("b.jpg", "two, or; three|four dogs".replace(separator, ""))]
        for extra in ("", " "):
            data = "\n".join(separator.join((n, extra + c)) for n, c in [("image_name", "comment"), *rows])
            yield "separators", f"{name}{len(extra)}.csv", data, rows
    yield (
        "separators",
        "number.csv",
        "image_name| comment_number| comment\na.jpg| 0| a dog runs\nb.jpg| 1| two dogs, running\n",
        ROWS,
    )
    yield (
        "separators",
        "unnamed first.tsv",
        "\timage_name\tcomment\n0\ta.jpg\ta dog runs\n1\tb.jpg\ttwo dogs, running\n",
        ROWS,
    )
    yield "separators", "unnamed last.csv", "image_name,comment,\na.jpg,a dog runs,\n", ROWS[:1]
    yield (
        "quotes",
        "doubled.csv",
        HEAD + 'a.jpg,"a ""big"" dog"\nb.jpg,a 6" pipe\n',
        [("a.jpg", 'a "big" dog'), ("b.jpg", 'a 6" pipe')],
    )
    yield (
        "quotes",
        "all.csv",
        '"image_name","comment"\n"a.jpg","a dog runs"\n"b.jpg","two dogs, running"\n',
        ROWS,
    )
    yield "quotes", "single.csv", HEAD + "a.jpg,it's 'fine'\n", [("a.jpg", "it's 'fine'")]
    yield (
        names,
        "spaces.csv",
        " image_name , comment \n  my photo.jpg ,  a dog  \n",
        [("my photo.jpg", "a dog")],
    )
    yield names, "order.csv", "comment,split,image_name\na dog runs,train,a.jpg\n", ROWS[:1]
    yield names, "doubled.csv", HEAD + BODY + BODY, ROWS + ROWS
    yield names, "many.csv", HEAD + "a.jpg,a dog runs\n" * 100_000, ROWS[:1] * 100_000
    yield (
        names,
        "long caption.csv",
        HEAD + f"a.jpg,{'dog ' * 32_000}dog\n",
        [("a.jpg", "dog " * 32_000 + "dog")],
    )
    yield names, "other case.CSV", HEAD + BODY, ROWS
    yield names, "no end", HEAD + BODY, ROWS
    yield names, "café 猫.csv", HEAD + BODY, ROWS


def refused_captions():
    """(kind, name, bytes, words of the error) of captions files that must not be read."""
    codes, layouts = "encodings", "published layouts"
    table = HEAD + BODY
    yield codes, "cp1252.csv", (HEAD + "a.jpg,x\nb.jpg,café\n").encode("cp1252"), "line 3: byte 0xe9.*cp1252"
    yield (
        codes,
        "cp1252 cr.csv",
        (HEAD + "a.jpg,x\nb.jpg,café\n").replace("\n", "\r").encode("cp1252"),
        "line 3: byte 0xe9",
    )
    for name in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        bom = b"\xfe\xff" if name == "utf-16-be" else b"\xff\xfe" if name == "utf-16-le" else b""
        yield (
            codes,
            f"{name}.csv",
            bom + table.encode(name),
            f"iconv -f {name.replace('-le', '').replace('-be', '')} ",
        )
    yield codes, "utf-16 bare.csv", table.encode("utf-16-le"), "line 1: .*NUL"
    yield codes, "nul.csv", (HEAD + "a.jpg,x\nb.jpg,a\0b\n").encode(), "line 3: .*NUL"
    yield codes, "nul cr.csv", (HEAD + "a.jpg,x\nb.jpg,a\0b\n").replace("\n", "\r").encode(), "line 3: .*NUL"
    yield codes, "zeros.csv", bytes(5000), "NUL"
    yield codes, "cut in a letter.csv", (HEAD + "a.jpg,café").encode()[:-1], "line 2: byte 0xc3"
    yield "columns", "empty.csv", b"", "found: nothing"
    yield "columns", "blank.csv", b" \n\n\r\n", "found: nothing"
    yield "columns", "header only.csv", HEAD, "no captions"
    yield "columns", "no header.csv", BODY, "no column 'image_name'.*tools.prepare"
    yield (
        "columns",
        "one missing.csv",
        "image_name,caption\na.jpg,x\n",
        "no column 'comment'.*found: image_name, caption.*--caption-column",
    )
    yield (
        "columns",
        "doubled name.csv",
        "image_name,image_name,comment\na.jpg,b.jpg,x\n",
        "'image_name' stands 2 times",
    )
    yield (
        "columns",
        "doubled comment.csv",
        "image_name,comment,comment\na.jpg,x,y\n",
        "'comment' stands 2 times",
    )
    yield "columns", "unquoted comma.csv", HEAD + "a.jpg,a dog, running\n", "line 2: 3 fields"
    yield "columns", "short row.csv", HEAD + "a.jpg,x\nb.jpg\n", "line 3: 1 fields?"
    yield "columns", "empty caption.csv", HEAD + "a.jpg,\n", "line 2: the caption is empty"
    yield "columns", "blank caption.csv", HEAD + "a.jpg,\u3000 \n", "line 2: the caption is empty"
    yield "columns", "empty name.csv", HEAD + " ,x\n", "line 2: the image name is empty"
    yield "columns", "capitals.csv", "Image_Name,Comment\na.jpg,x\n", "found: Image_Name, Comment"
    yield "quotes", "open.csv", HEAD + 'a.jpg,x\nb.jpg,"opens\nc.jpg,y\n', "line 3: "
    yield (
        "quotes",
        "open, long.csv",
        HEAD + 'a.jpg,x\nb.jpg,"opens\n' + "c.jpg,y\n" * 50_000,
        "line 3: .*quote",
    )
    yield "quotes", "after.csv", HEAD + 'a.jpg,"Stop" sign\n', "line 2: "
    yield "quotes", "long caption.csv", HEAD + f"a.jpg,{'x' * 1_000_000}\n", "line 2: .*131,?072"
    yield "quotes", "long quoted caption.csv", HEAD + f'a.jpg,"{"x" * 1_000_000}"\n', "line 2: .*131,?072"
    yield "quotes", "long line.csv", "x" * 1_000_000, "no column"
    yield (
        layouts,
        "Flickr8k.token.txt",
        "1.jpg#0\tA child in a pink dress .\n" * 2,
        "no column.*tools.prepare",
    )
    yield (
        layouts,
        "captions.txt",
        "image,caption\n1.jpg,A child , in a dress .\n",
        "--image-column.*tools.prepare",
    )
    row = "2199200615.jpg| 4   A dog runs across the grass .\n"
    yield (
        layouts,
        "results.csv",
        "image_name| comment_number| comment\n1.jpg| 0| Two men .\n" + row,
        "line 3: 2 fields",
    )
    coco = {
        "info": {},
        "images": [{"id": i, "file_name": f"{i:012}.jpg"} for i in range(5000)],
        "annotations": [],
    }
    yield layouts, "captions_train2017.json", json.dumps(coco), "no column.*tools.prepare"
    karpathy = {"images": [{"filename": "a.jpg", "sentences": []}]}
    yield layouts, "dataset_coco.json", json.dumps(karpathy, indent=1), "no column.*tools.prepare"
    yield layouts, "rows.jsonl", '{"image_name": "a.jpg", "comment": "a dog"}\n' * 3, "no column"
    yield "other files", "book.xlsx", b"PK\3\4" + bytes(range(256)) * 9, "workbook|ZIP"
    yield "other files", "rows.csv.gz", b"\x1f\x8b\x08" + bytes(range(256)), "gzip"
    yield "other files", "photo.csv", saved(RGB, "PNG"), "not UTF-8"
    yield "other files", "page.csv", "<!DOCTYPE html>\n<html><body>404</body></html>", "no column"
    yield (
        "other files",
        "pointer.csv",
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "no column",
    )


def make_captions(folder):
    """Write the corpus of captions files under `folder`, which must be empty, and return its Cases."""
    folder, cases = Path(folder), []
    images = folder / "images"
    (images / "inner").mkdir(parents=True)
    for name in (
        "a.jpg",
        "b.jpg",
        "my photo.jpg",
        "inner/c.jpg",
        "../outside.jpg",
        unicodedata.normalize("NFD", "café.jpg"),
    ):
        (images / name).write_bytes(saved(RGB, "JPEG"))

    def add(kind, name, data, *rest, images=None):
        path = folder / re.sub("[^a-z0-9]+", "-", kind.lower()) / name
        path.parent.mkdir(exist_ok=True)
        if data is not None:
            path.write_bytes(data if isinstance(data, bytes) else data.encode())
        cases.append(Case(kind, path, *rest, images=images))
        return path

    for kind, name, data, rows in good_captions():
        add(kind, name, data, rows)
    for kind, name, data, error in refused_captions():
        add(kind, name, data, None, error)
    (images / "out.jpg").symlink_to("../outside.jpg")
    (images / "in.jpg").symlink_to("inner/c.jpg")
    (images / "up").symlink_to("..")
    (images / "circle.jpg").symlink_to("circle.jpg")
    os.mkfifo(images / "pipe.jpg")
    outside = "leads out of the image folder"
    names = {
        "../outside.jpg": outside,
        f"{folder}/outside.jpg": outside,
        "/etc/hostname": outside,
        "inner/../../outside.jpg": outside,
        "out.jpg": outside,
        "up/outside.jpg": outside,
        "inner": "a folder",
        ".": "a folder",
        "..": outside,
        "circle.jpg": "ymbolic link|ymlink loop",
        "pipe.jpg": "a pipe",
        "gone.jpg": "no such file",
        "a.jpg/x.jpg": "no such file|Not a directory",
        "n" * 300 + ".jpg": "too long",
        "~/a.jpg": "no such file",
        "inner\\c.jpg": "no such file",
        "A.JPG": "no such file",
        "café.jpg": "Unicode",
    }
    inside = [
        "my photo.jpg",
        "inner/c.jpg",
        "./a.jpg",
        "in.jpg",
        f"{images}/a.jpg",
        "inner/../b.jpg",
        "cafe\u0301.jpg",
    ]
    for number, (name, error) in enumerate(names.items()):
        add(
            "names of images",
            f"bad {number}.csv",
            f"{HEAD}a.jpg,x\n{name},y\n",
            None,
            f"line 3: .*({error})",
            images=images,
        )
    for number, name in enumerate(inside):
        add("names of images", f"good {number}.csv", f"{HEAD}{name},y\n", [(name, "y")], images=images)
    add("other files", "folder.csv", None, None, "folder").mkdir()
    os.mkfifo(add("other files", "pipe.csv", None, None, "pipe"))
    add("other files", "missing.csv", None, None, "No such file")
    add("other files", "unreadable.csv", HEAD + BODY, None, "ermission").chmod(0)
    add("other files", "circle.csv", None, None, "symbolic links").symlink_to("circle.csv")
    return cases


def plain(path):
    """The pixels Pillow and numpy make of a file in the plainest way, (H, W, 3); what `open_image` is held against."""
    with Image.open(path) as image:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return three(np.asarray(image, float) / 257)
    rgba = np.asarray(image.convert("RGBA"), float)
    return rgba[:, :, :3] * rgba[:, :, 3:] / 255 + 255 - rgba[:, :, 3:]


def difference(case, got):
    """Why the pixels of a PIL image are not those of the case; '' when they are."""
    if got.mode != "RGB":
        return f"WRONG PIXELS: mode {got.mode}"
    want = plain(case.path) if case.want is PLAIN else case.want
    if want.shape != np.shape(got):
        return f"WRONG PIXELS: {np.shape(got)} in place of {want.shape}"
    off = np.abs(np.asarray(got) - want.astype(float))
    if off.mean() > case.close if case.close else off.max() > 1:
        return f"WRONG PIXELS: off by {off.mean():.2f}, {off.max():.0f} at most"
    return ""


def examine(case):
    """'right', 'error' (a clear one, where there may be one), or in capitals what is wrong."""
    image = case.kind in IMAGE_KINDS
    try:
        if image:
            got = open_image(case.path)
        else:
            rows = (
                VisionTextDataset(case.path, None, case.images).rows
                if case.images
                else read_captions(case.path)
            )
            got = [(row.image_name, row.caption) for row in rows]
    except (ValueError, OSError) as error:
        said = str(error)
        if case.error is None:
            return f"REFUSED: {said}"
        if str(case.path) not in said and repr(str(case.path))[1:-1] not in said:
            return f"NO PATH: {said}"
        if len(said) > 1000 + len(str(case.path)) or not re.search(case.error, said, re.S):
            return f"UNCLEAR: {said}"
        return "error"
    if case.want is None:
        return "ACCEPTED, though it should be refused"
    return (difference(case, got) if image else "WRONG ROWS" * (got != case.want)) or "right"


IMAGE_KINDS = [
    "every format, whole",
    "wrong extension",
    "odd names",
    "EXIF, eight ways",
    "PNG, each depth and type",
    "transparency",
    "CMYK",
    "TIFF, 16-bit, tiled, paged",
    "animations",
    "ICC profiles",
    "sizes",
    "trailing garbage",
    "truncated",
    "mutated",
    "damaged, by kind",
    "bombs",
    "no known white",
    "not images",
    "not files",
]
CAPTION_KINDS = [
    "encodings",
    "line ends",
    "separators",
    "quotes",
    "columns",
    "names and rows",
    "names of images",
    "published layouts",
    "other files",
]


def child(cases, results, examine):
    """Examine the cases in this process, which the limits of memory are set for, and send each outcome."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for case in cases:
        root = getattr(case, "path", Path()).name.startswith("unreadable") and os.geteuid() == 0
        if root:  # may read anything; nobody may not
            os.seteuid(65534)
        try:
            outcome = examine(case)
        except BaseException as error:
            outcome = f"TRACEBACK: {type(error).__name__}: {error}"
        if root:
            os.seteuid(0)
        results.send(outcome)


def trial(cases, examine=examine, limit=LIMIT):
    """([outcome of each case], largest resident memory in bytes). Cases run in child processes: one that takes too long is killed,
    one that brings its process down is named, and a new process goes on behind it."""
    outcomes, peak = [], 0
    while len(outcomes) < len(cases):
        ours, theirs = Pipe(duplex=False)
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            try:
                child(cases[len(outcomes) :], theirs, examine)
            finally:
                os._exit(0)
        theirs.close()
        try:
            while ours.poll(limit):
                outcomes.append(ours.recv())
            ended = f"HANG: over {limit} s"
        except EOFError:
            ended = "CRASH: the process ended"
        os.kill(pid, signal.SIGKILL)
        peak = max(peak, os.wait4(pid, 0)[2].ru_maxrss * 1024)
        if len(outcomes) < len(cases):
            outcomes.append(ended)
    return outcomes, peak


def table(title, kinds, cases, outcomes):
    """Lines of a Markdown table: of each kind the files, the right results, the clear errors, and whatever else came."""
    lines = [
        f"| {title} | files | right result | clear error | wrong or unclear | traceback | hang | crash |",
        "|---" * 8 + "|",
    ]
    for kind in [*kinds, "**all**"]:
        came = Counter(
            outcome.split(":")[0] for case, outcome in zip(cases, outcomes) if kind in (case.kind, "**all**")
        )
        right, error, *rest = (came[word] for word in ("right", "error", "TRACEBACK", "HANG", "CRASH"))
        unclear = came.total() - right - error - sum(rest)
        lines.append(
            f"| {kind} | {came.total()} | {right} | {error} | {unclear} | {' | '.join(map(str, rest))} |"
        )
    return lines


def main(argv=None):
    """Exit code: 0 all right, 1 some file is not."""
    parser = argparse.ArgumentParser(
        "python -m tests.corpus", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", metavar="DIR", help="empty folder to make the files in, which stay there")
    parser.add_argument(
        "--mutations", type=int, default=8, help="random changes a format (default %(default)s)"
    )
    parser.add_argument(
        "--json",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="print [kind, file, outcome] of each instead",
    )
    args = parser.parse_args(argv)
    if args.keep and Path(args.keep).exists() and any(Path(args.keep).iterdir()):
        parser.error(f"--keep {args.keep}: not empty; name a new folder")
    with tempfile.TemporaryDirectory() as scratch:
        os.chmod(scratch, 0o755)  # another user has to get there to find a file unreadable
        folder = Path(args.keep or scratch).resolve()
        images, captions = make_images(folder / "image", args.mutations), make_captions(folder / "captions")
        (images_came, peak), (captions_came, _) = trial(images), trial(captions)
    cases, outcomes = images + captions, images_came + captions_came
    if args.json:
        print(
            json.dumps(
                dict(
                    peak=peak,
                    outcomes=[(c.kind, str(c.path.relative_to(folder)), o) for c, o in zip(cases, outcomes)],
                )
            )
        )
        return 0
    print(*table("images", IMAGE_KINDS, images, images_came), sep="\n", end="\n\n")
    print(*table("captions files", CAPTION_KINDS, captions, captions_came), sep="\n")
    bad = [
        f"{case.path.relative_to(folder)}: {outcome}"
        for case, outcome in zip(cases, outcomes)
        if outcome not in ("right", "error")
    ]
    print(f"\nlargest resident memory {peak / 2**20:,.0f} MB", *bad, sep="\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
