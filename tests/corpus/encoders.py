"""Arrays and bytes of image files, some of them written from the specification, since Pillow writes no such
file."""

import base64
import io
import struct
import zlib

import numpy as np
import tifffile
from PIL import Image


def scene(height=40, width=56):
    """(H, W, 3) uint8: smooth, so that JPEG keeps it, and unlike each of its own mirror images and turns."""
    y, x = np.mgrid[:height, :width] / np.array([height, width]).reshape(2, 1, 1)
    bump = 30 + 200 * np.exp(-8 * ((x - 0.3) ** 2 + (y - 0.7) ** 2))
    return np.stack([40 + 180 * x, 220 - 150 * y, bump], -1).astype(np.uint8)


RGB = scene()
GREY, ALPHA = RGB[:, :, 0], RGB[:, :, 2]  # (H, W)
RGBA = np.dstack([RGB, ALPHA])  # (H, W, 4)
DEEP, DEEP_RGB = GREY.astype(np.uint16) * 257, RGB.astype(np.uint16) * 257
# How the pixels are stored in a file with each EXIF orientation.
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
# Largest mean difference from the scene, of 255. A file that is not listed is exact.
LOSSY = {"plain.jpg": 2, "progressive.jpg": 4, "420.jpg": 4, "grey.jpg": 2, "lossy.webp": 4, "plain.avif": 3}
LOSSY |= {"palette.gif": 20, "animated.gif": 20, "jpeg.tif": 4, "two.mpo": 5}
# An arithmetic-coded JPEG of 16 x 8 grey pixels, 16 x + 2 y, by libjpeg-turbo 3.2: no Python package writes
# one.
ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAIBAQEBAQIBAQECAgICAgQDAgICAgUEBAMEBgUGBgYFBgYGBwkIBgcJBwYGCAsI"
    "CQoKCgoKBggLDAsKDAkKCgr/yQALCAAIABABAREA/8wABgAQEAX/2gAIAQEAAD8A/wDr9D+TLdp9wzzL89/w7jgAyja4gP/Z"
)


def three(grey):
    """(H, W) -> (H, W, 3)."""
    return np.repeat(np.asarray(grey)[:, :, None], 3, axis=2)


def on_white(color, alpha):
    """(H, W, 3) uint8: colors (H, W, 3) under alphas (H, W) of 0 to 255, on white."""
    alpha = np.asarray(alpha, float)[:, :, None] / 255
    return (color * alpha + 255 * (1 - alpha)).round().astype(np.uint8)


def ink(cmyk):
    """(H, W, 4) -> (H, W, 3): what paper shows under that much ink."""
    return ((255.0 - cmyk[:, :, :3]) * (255 - cmyk[:, :, 3:]) / 255).round().astype(np.uint8)


def stored(pixels, turn):
    """`pixels` as a file of EXIF orientation `turn` stores them."""
    return np.ascontiguousarray(STORED[turn](pixels))


def saved(pixels, format, mode=None, **options):
    """The bytes that Pillow writes for an array or an image."""
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(file, format, **options)
    return file.getvalue()


def exif(orientation):
    """EXIF with that orientation, for `saved`."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def chunk(name, data):
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def png(samples, depth, color, interlaced=False, before=b"", size=None):
    """A PNG of samples (H, W, C), of any depth and color type. `before` are chunks ahead of the pixels."""
    height, width = samples.shape[:2]
    data = b""
    for x, y, dx, dy in ADAM7 if interlaced else [(0, 0, 1, 1)]:
        for row in samples[y::dy, x::dx].astype(">u2") if x < width else []:
            bits = np.unpackbits(row.reshape(-1, 1).view(np.uint8), axis=1)[:, 16 - depth :]
            data += b"\0" + np.packbits(bits).tobytes()
    header = struct.pack(">IIBBBBB", *(size or (width, height)), depth, color, 0, 0, interlaced)
    chunks = chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def tiff(data, tags):
    """A little-endian TIFF of one strip. `tags` {number: value} replace the strip's own."""
    tags = {256: 56, 257: 40, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 40, 279: len(data)} | tags
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    start = b"II*\0" + struct.pack("<I", 8 + len(data))
    return start + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def tifffiled(pixels, photometric="rgb", **options):
    """The bytes that tifffile writes for an array."""
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, photometric=photometric, **options)
    return file.getvalue()


def whole():
    """{name: bytes} of the same scene in every format and coding: what is cut and changed elsewhere."""
    files = {f"plain.{end}": saved(RGB, **options) for end, options in FINE.items()}
    first, *rest = (Image.fromarray(np.roll(RGB, 9 * n, axis=1)) for n in range(3))
    frames = dict(save_all=True, append_images=rest)
    return files | {
        "progressive.jpg": saved(RGB, "JPEG", quality=95, progressive=True),
        "420.jpg": saved(RGB, "JPEG", quality=95),
        "grey.jpg": saved(GREY, "JPEG", quality=95),
        "interlaced.png": png(RGB, 8, 2, True),
        "palette.gif": saved(RGB, "GIF", mode="P"),
        "animated.gif": saved(first, "GIF", **frames),
        "animated.webp": saved(first, "WEBP", lossless=True, **frames),
        "animated.png": saved(first, "PNG", **frames),
        "lossy.webp": saved(RGB, "WEBP", quality=95),
        "plain.bmp": saved(RGB, "BMP"),
        "plain.ppm": saved(RGB, "PPM"),
        "plain.jp2": saved(RGB, "JPEG2000"),
        "plain.j2k": saved(RGB, "JPEG2000", no_jp2=True),
        "deflated.tif": saved(RGB, "TIFF", compression="tiff_deflate"),
        "lzw.tif": saved(RGB, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": saved(RGB, "TIFF", compression="jpeg", quality=95),
        "two.mpo": saved(first, "MPO", save_all=True, append_images=rest[:1]),
    }


def shown(name):
    """The pixels of a file of `whole`, (H, W, 3)."""
    return three(GREY) if name == "grey.jpg" else RGB
