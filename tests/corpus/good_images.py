"""Images that must decode, by kind. Each function returns [(name, bytes, pixels, closeness)]."""

import struct
import unicodedata

import numpy as np
from PIL import Image, ImageCms

from tests.corpus.encoders import (
    ALPHA,
    ARITHMETIC,
    DEEP,
    DEEP_RGB,
    FINE,
    GREY,
    LOSSY,
    RGB,
    RGBA,
    chunk,
    exif,
    ink,
    on_white,
    png,
    saved,
    scene,
    shown,
    stored,
    three,
    tifffiled,
    whole,
)

NFD = unicodedata.normalize("NFD", "café")
ODD_NAMES = ["with space", "café", NFD, "猫", "a'b\"c", "new\nline", "#%&"]
ODD_NAMES += ["-rf", "🐈", "x" * 200]
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def every_format():
    ramp = three(16 * np.arange(16) + 2 * np.arange(8)[:, None])
    files = [(name, data, shown(name), LOSSY.get(name, 0)) for name, data in whole().items()]
    return [*files, ("arithmetic.jpg", ARITHMETIC, ramp, 1)]


def trailing():
    return [(name, data + b"\0garbage\xff\xd8" * 50, *rest) for name, data, *rest in every_format()[:-1]]


def wrong_extension():
    pairs = (".jpg png", ".png webp", ".gif tif", ".txt png", " avif", ".JPEG webp", ".heic jpg")
    return [
        (f"other{end}", saved(RGB, **FINE[kind]), RGB, 3) for end, kind in (pair.split(" ") for pair in pairs)
    ]


def odd_names():
    return [(f"{name}.png", saved(RGB, "PNG"), RGB, 0) for name in ODD_NAMES]


def orientations():
    files = []
    for turn in range(1, 9):
        for end, options in FINE.items():
            pixels = stored(RGB, turn)
            if end == "tif":
                data = tifffiled(pixels, extratags=[(274, 3, 1, turn)])
            else:
                data = saved(pixels, exif=exif(turn), **options)
            files.append((f"{turn}.{end}", data, RGB, LOSSY.get(f"plain.{end}", 0)))
        data = saved(stored(GREY, turn), "JPEG", quality=95, exif=exif(turn))
        files.append((f"grey{turn}.jpg", data, three(GREY), 2))
    turned = stored(RGB, 6)
    text = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)
    files += [("xmp.jpg", saved(turned, xmp=XMP, **FINE["jpg"]), RGB, 2)]
    files += [("xmp.png", png(turned, 8, 2, before=text), RGB, 0)]
    start = b"Exif\0\0II*\0\x08\0\0\0"
    entries = struct.pack("<HHII", 0x112, 3, 0xFFFFFFFF, 8) + struct.pack("<HHII", 0x8769, 4, 1, 8)
    metadata = {f"no such turn {value}": exif(value) for value in (0, 9, 65535)}
    metadata["garbage"] = start + b"\xff\xff" + bytes(range(200))
    metadata["bomb"] = start + b"\x02\0" + entries + struct.pack("<I", 8)
    return files + [
        (f"{n}.jpg", saved(RGB, exif=data, **FINE["jpg"]), RGB, 2) for n, data in metadata.items()
    ]


def depths():
    """(name, depth, whether interlaced, levels (H, W, 1) int, what they look like (H, W, 3))."""
    for interlaced in (False, True):
        for depth in (1, 2, 4, 8, 16):
            top = 2**depth - 1
            levels = (GREY.astype(int) * top // 255)[:, :, None]
            yield (
                f"{depth}{'i' * interlaced}.png",
                depth,
                interlaced,
                levels,
                three((levels[:, :, 0] / top * 255).round()),
            )


def palette(depth):
    """(indices (H, W, 1), colors (C, 3), alphas (C,)) of a palette of at most 16 colors."""
    count = min(16, 2**depth)
    index = (np.arange(40)[:, None] + np.arange(56)) % count
    return index[:, :, None], RGB[::10, ::14].reshape(-1, 3)[:count], np.arange(count) * 17


def deepened(depth):
    """RGB with `depth` bits, 8 or 16. The lower 8 of 16 bits vary."""
    return RGB.astype(int) * ((2**depth - 1) // 255) + (depth > 8) * 77 * (RGB < 255)


def png_types():
    files = []
    for name, depth, interlaced, levels, seen in depths():
        files.append((f"grey{name}", png(levels, depth, 0, interlaced), seen, 0))
        if depth <= 8:
            index, colors, _ = palette(depth)
            data = png(index, depth, 3, interlaced, chunk(b"PLTE", colors.tobytes()))
            files.append((f"palette{name}", data, colors[index[:, :, 0]], 0))
        if depth >= 8:
            files.append((f"rgb{name}", png(deepened(depth), depth, 2, interlaced), RGB, 0))
    return files


def png_transparency():
    files = []
    for name, depth, interlaced, levels, seen in depths():
        if depth <= 8:
            key = levels[20, 28, 0]
            data = png(levels, depth, 0, interlaced, chunk(b"tRNS", struct.pack(">H", key)))
            files.append((f"greykey{name}", data, on_white(seen, 255 * (levels[:, :, 0] != key)), 0))
            index, colors, alphas = palette(depth)
            table = chunk(b"PLTE", colors.tobytes()) + chunk(b"tRNS", bytes(alphas.tolist()))
            flat = index[:, :, 0]
            data = png(index, depth, 3, interlaced, table)
            files.append((f"palette{name}", data, on_white(colors[flat], alphas[flat]), 0))
        if depth >= 8:
            deep, alpha = deepened(depth), ALPHA[:, :, None].astype(int) * ((2**depth - 1) // 255)
            data = png(np.dstack([deep[:, :, :1], alpha]), depth, 4, interlaced)
            files.append((f"la{name}", data, on_white(three(GREY), ALPHA), 0))
            data = png(np.dstack([deep, alpha]), depth, 6, interlaced)
            files.append((f"rgba{name}", data, on_white(RGB, ALPHA), 0))
        if depth == 8:
            key = deep[20, 28]
            data = png(deep, depth, 2, interlaced, chunk(b"tRNS", struct.pack(">HHH", *key.tolist())))
            files.append((f"rgbkey{name}", data, on_white(RGB, 255 * (deep != key).any(2)), 0))
    return files


def checked():
    """(a palette image whose color 0 is to be transparent, its pixels on white)."""
    image = Image.fromarray(((np.arange(40)[:, None] + np.arange(56)) % 2).astype(np.uint8), "P")
    image.putpalette([200, 30, 20, 20, 90, 200])
    return image, np.array([[255, 255, 255], [20, 90, 200]], np.uint8)[np.asarray(image)]


def transparency():
    clear, on_paper = on_white(RGB, ALPHA), on_white(three(GREY), ALPHA)
    image, pixels = checked()
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    sizes = (122 + RGBA.size, 0, 122, 108, 56, -40, 1, 32, 3, 0, 0, 0, 0, 0)
    bmp = (b"BM" + struct.pack("<IIIIiiHHIIiiII", *sizes) + masks).ljust(122, b"\0")
    return png_transparency() + [
        ("rgba.webp", saved(RGBA, "WEBP", lossless=True), clear, 0),
        ("rgba.avif", saved(RGBA, **FINE["avif"]), clear, 3),
        ("rgba.jp2", saved(RGBA, "JPEG2000"), clear, 0),
        ("la.jp2", saved(np.dstack([GREY, ALPHA]), "JPEG2000"), on_paper, 0),
        ("rgba.tif", tifffiled(RGBA, extrasamples=["unassalpha"]), clear, 0),
        ("rgba.bmp", saved(RGBA, "BMP"), RGB, 0),  # BI_RGB: the fourth byte is not alpha
        ("alpha.bmp", bmp + RGBA[:, :, [2, 1, 0, 3]].tobytes(), clear, 0),
        ("index.gif", saved(image, "GIF", transparency=0), pixels, 0),
    ]


def animations():
    image, pixels = checked()
    others = [image.transpose(Image.Transpose.ROTATE_180), image.crop((0, 0, 8, 8)).resize((56, 40))]
    options = dict(save_all=True, append_images=others, transparency=0)
    files = [
        (f"disposal{how}.gif", saved(image, "GIF", disposal=how, **options), pixels, 0) for how in range(4)
    ]
    hidden = chunk(b"acTL", struct.pack(">II", 1, 0))  # an APNG whose default image is no frame
    return [*files, ("hidden.png", png(RGB, 8, 2, before=hidden), RGB, 0)]


def cmyk():
    pixels = np.dstack([255 - RGB, GREY // 4])
    options = dict(format="JPEG", quality=97, subsampling=0)
    adobe = saved(Image.fromarray(pixels, "CMYK"), **options)
    at = adobe.index(b"\xff\xee")
    bare = adobe[:at] + adobe[at + 2 + int.from_bytes(adobe[at + 2 : at + 4], "big") :]
    turned = saved(Image.fromarray(stored(pixels, 8), "CMYK"), exif=exif(8), **options)
    ycc = 255 - np.asarray(Image.fromarray(255 - RGB).convert("YCbCr"))
    ycck = bytearray(saved(Image.fromarray(np.dstack([ycc, GREY // 4]), "CMYK"), **options))
    ycck[ycck.index(b"Adobe") + 11] = 2
    return [
        ("adobe.jpg", adobe, ink(pixels), 2),
        ("bare.jpg", bare, ink(pixels), 2),  # without the marker it is read as Adobe's, as browsers do
        ("cmyk.tif", tifffiled(pixels, "separated"), ink(pixels), 0),
        ("cmyk16.tif", tifffiled(pixels.astype(np.uint16) * 257, "separated"), ink(pixels), 0),
        ("turned.jpg", turned, ink(pixels), 2),
        ("ycck.jpg", bytes(ycck), ink(pixels), 3),
    ]


def profiles():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    found = {"srgb": srgb, "broken": srgb[:100] + b"\xff" * 40}
    return [
        (f"{name}.{end}", saved(RGB, icc_profile=icc, **options), RGB, LOSSY.get(f"plain.{end}", 0))
        for end, options in FINE.items()
        for name, icc in found.items()
    ]


def tiffs():
    files = {}
    for order, byteorder in (("II", "<"), ("MM", ">")):
        files[f"grey16{order}.tif"] = tifffiled(DEEP, "minisblack", byteorder=byteorder), three(GREY)
        files[f"rgb16{order}.tif"] = tifffiled(DEEP_RGB, byteorder=byteorder), RGB
    planes = np.ascontiguousarray(RGB.transpose(2, 0, 1))
    files |= {
        "inverse8.tif": (tifffiled(255 - GREY, "miniswhite"), three(GREY)),
        "tiled.tif": (tifffiled(RGB, tile=(16, 16)), RGB),
        "tiled16.tif": (tifffiled(DEEP, "minisblack", tile=(16, 16)), three(GREY)),
        "planes.tif": (tifffiled(planes, planarconfig="separate"), RGB),
        "big.tif": (tifffiled(RGB, bigtiff=True), RGB),
        "deflate.tif": (tifffiled(RGB, compression="zlib"), RGB),
        "predictor.tif": (tifffiled(RGB, compression="zlib", predictor=True), RGB),
        "pages.tif": (tifffiled(np.stack([RGB] + [RGB[::-1]] * 300)), RGB),
        "strips.tif": (tifffiled(RGB, rowsperstrip=3), RGB),
        "extra.tif": (tifffiled(RGBA, extrasamples=[0]), RGB),
        "bit.tif": (tifffiled(GREY > 127, "minisblack"), three((GREY > 127) * 255)),
        "grey16.pgm": (b"P5 56 40 65535\n" + DEEP.astype(">u2").tobytes(), three(GREY)),
        "grey10.pgm": (b"P5 56 40 1023\n" + (DEEP // 64).astype(">u2").tobytes(), three(GREY)),
        "rgb16.ppm": (b"P6 56 40 65535\n" + DEEP_RGB.astype(">u2").tobytes(), RGB),
        "grey16.jp2": (saved(DEEP, "JPEG2000"), three(GREY)),
    }
    return [(name, data, pixels, 0) for name, (data, pixels) in files.items()]


def sizes():
    long = ((1, 20_000), (20_000, 1), (1, 65_535), (65_535, 1), (3, 65_535))
    chosen = [(*size, "png", dict(format="PNG"), 0) for size in ((1, 1), (1, 2), (2, 1), *long)]
    for size in ((1, 1), (1, 20_000), (65_500, 1)):
        chosen += [(*size, "jpg", FINE["jpg"], 3), (*size, "bmp", dict(format="BMP"), 0)]
    chosen.append((1, 16_383, "webp", FINE["webp"], 0))
    return [
        (f"{width}x{height}.{end}", saved(scene(height, width), **options), scene(height, width), close)
        for height, width, end, options, close in chosen
    ]


GOOD = {
    "every format, whole": every_format,
    "trailing garbage": trailing,
    "wrong extension": wrong_extension,
    "odd names": odd_names,
    "EXIF, eight ways": orientations,
    "PNG, each depth and type": png_types,
    "transparency": transparency,
    "animations": animations,
    "CMYK": cmyk,
    "ICC profiles": profiles,
    "TIFF, 16-bit, tiled, paged": tiffs,
    "sizes": sizes,
}
