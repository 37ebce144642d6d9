"""Images that must be refused, by kind: each function returns [(name, bytes, pattern of the error)]. And
images with something huge in them that is never read, and random changes."""

import random
import struct
import zlib

import numpy as np

from tests.corpus.encoders import (
    DEEP,
    GREY,
    RGB,
    chunk,
    png,
    saved,
    scene,
    tiff,
    tifffiled,
    whole,
)

# A damaged file: any reason of a decoder.
CUT = "truncated|broken|cannot|decod|codec|Truncated|buffer|not enough|unrecognized|seek|error|Error"
NOT_AN_IMAGE = "not one of the formats"


def not_images():
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    box = struct.pack(">I", 24) + b"ftyp"
    heic = [(f"{brand}.heic", box + brand.encode() + bytes(500), "HEIC") for brand in HEIC]
    others = "ICO TGA PCX EPS PDF SGI DDS ICNS".split()
    others = [(f"other.{name.lower()}", saved(scene(64, 64), name), NOT_AN_IMAGE) for name in others]
    return [
        ("empty.jpg", b"", "empty"),
        ("zeros.jpg", bytes(10_000), NOT_AN_IMAGE),
        ("page.jpg", b"<!DOCTYPE html><html>404</html>", "web page"),
        ("lower.png", b"\r\n<html><head>", "web page"),
        ("bom.jpg", b"\xef\xbb\xbf<!doctype HTML>", "web page"),
        ("pointer.jpg", lfs, "git lfs pull"),
        ("drawing.svg", b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"></svg>', "SVG"),
        ("drawing.jpg", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        *heic,
        ("video.jpg", box + b"isom" + bytes(500), "video"),
        ("raw.psd", b"8BPS\0\1" + bytes(500), "Photoshop"),
        ("text.jpg", b"hello", NOT_AN_IMAGE),
        ("error.jpg", b'{"message": "limit"}', NOT_AN_IMAGE),
        ("zip.jpg", b"PK\3\4" + bytes(99), NOT_AN_IMAGE),
        ("pickle.png", b"\x80\x04\x95.", NOT_AN_IMAGE),
        *others,
    ]


HEIC = ("heic", "heix", "mif1", "msf1")


def no_known_white():
    twelve = ((GREY.astype(int) * 4095 + 127) // 255).astype(">u2").reshape(-1, 1).view(np.uint8)
    packed = np.packbits(np.unpackbits(twelve, axis=1)[:, 4:]).tobytes()
    key, white = DEEP[:, :, None].astype(int), "no known white"
    return [
        ("float.tif", tifffiled(RGB[:, :, 0] / np.float32(255), "minisblack"), white),
        ("rgbfloat.tif", tifffiled(RGB / np.float32(255)), CUT),
        ("uint32.tif", tifffiled(GREY.astype(np.uint32), "minisblack"), white),
        ("int16.tif", tifffiled(GREY.astype(np.int16), "minisblack"), white),
        ("grey12.tif", tiff(packed, {258: 12}), "BitsPerSample 12.*no known white"),
        ("inverse16.tif", tifffiled(65535 - DEEP, "miniswhite"), white),
        ("key16.png", png(key, 16, 0, before=chunk(b"tRNS", b"\0\7")), "transparent"),
        ("rgbkey16.png", png(np.dstack([key] * 3), 16, 2, before=chunk(b"tRNS", b"\0\7" * 3)), "transparent"),
        ("float.pfm", b"Pf\n2 2\n-1.0\n" + np.ones(4, "<f4").tobytes(), white),
        ("double.tif", tifffiled(GREY.astype(float), "minisblack"), CUT),
    ]


def sized(name, form, old, new, files=None):
    """A file of `whole` with the size `old`, packed as `form`, replaced by `new`."""
    data = (files or whole())[name]
    assert struct.pack(form, *old) in data
    return data.replace(struct.pack(form, *old), struct.pack(form, *new))


def bombs():
    files, rows, columns, size = whole(), (40, 56), (56, 40), "pixels"
    canvases = ((100_000, 100_000), (65_535, 65_535), (10_000, 9_000), (2**31 - 1, 2**31 - 1))
    canvases += ((2**31 - 1, 1), (1, 2**30))
    pngs = [
        (f"{w}x{h}.png", png(RGB, 8, 2, size=(w, h)), f"{size}|truncated|memory|cannot") for w, h in canvases
    ]
    scans = sized("progressive.jpg", ">HH", rows, (9000, 9000))[:-2]
    scans += scans[scans.rindex(b"\xff\xda") :] * 20_000
    webp = files["animated.webp"].replace(bytes([55, 0, 0, 39, 0, 0]), b"\xfe\x3f\0\xfe\x3f\0")
    tiled = {256: 100, 257: 100, 322: 2**30, 323: 2**30, 324: 8, 325: 99}
    zeros = zlib.compress(bytes(300 << 20), 1)
    texts = [(b"zTXt", b"Comment\0\0"), (b"iTXt", b"Comment\0\1\0\0\0")]
    return [
        *pngs,
        ("scans.jpg", scans, "scans"),
        ("header.jpg", sized("plain.jpg", ">HH", rows, (65_000, 65_000)), size),
        ("side.jpg", sized("plain.jpg", ">HH", rows, (1, 65_535)), CUT),
        ("header.gif", sized("palette.gif", "<HH", columns, (65_535, 65_535)), size),
        ("header.bmp", sized("plain.bmp", "<ii", columns, (2**30, 2**30)), size),
        ("header.ppm", files["plain.ppm"].replace(b"56 40", b"99999 99999"), size),
        ("digits.ppm", files["plain.ppm"].replace(b"56 40", b"9" * 5000 + b" 40"), CUT),
        ("header.jp2", sized("plain.jp2", ">II", rows, (90_000, 90_000)), size),
        ("header.j2k", sized("plain.j2k", ">II", columns, (90_000, 90_000)), size),
        ("header.avif", sized("plain.avif", ">II", columns, (60_000, 60_000)), CUT),
        ("header.webp", webp, f"{size}|{CUT}"),
        ("header.tif", tiff(bytes(99), {256: 60_000, 257: 60_000, 278: 60_000}), size),
        ("strip.tif", tiff(bytes(99), {279: 2**32 - 1}), CUT),
        ("tile.tif", tiff(bytes(99), tiled), CUT),
        *((f"{k.decode()}.png", png(RGB, 8, 2, before=chunk(k, text + zeros)), CUT) for k, text in texts),
    ]


def damaged():
    wider = (b"IHDR" + struct.pack(">I", width) for width in (56, 57))
    return [
        ("crc.png", png(RGB, 8, 2).replace(*wider), CUT),
        ("no palette.png", png(np.zeros((4, 4, 1), int), 8, 3), "palette is missing"),
        ("depth.png", png(np.zeros((4, 4, 1), int), 7, 0), CUT),
        ("zero wide.png", png(RGB, 8, 2, size=(0, 40)), CUT),
        ("zero.ppm", b"P6 0 0 255\n", CUT),
        ("head only.jpg", b"\xff\xd8\xff\xe0", CUT),
        ("end only.jpg", b"\xff\xd8\xff\xd9", CUT),
    ]


def harmless():
    """[(name, bytes)]: small images with something huge in or behind them, which need not be read."""
    data = b"".join(b"\0" + row.tobytes() for row in RGB) + bytes(200 << 20)
    idat = png(RGB, 8, 2)[:33] + chunk(b"IDAT", zlib.compress(data, 1)) + chunk(b"IEND", b"")
    icc = chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(300 << 20), 1))
    return [
        ("idat.png", idat),
        ("icc.png", png(RGB, 8, 2, before=icc)),
        ("pages.tif", tifffiled(np.stack([RGB] * 3000))),
        ("circle.tif", circle(tifffiled(RGB, software=False))),
    ]


def circle(data):
    """A TIFF whose last directory names the first as the one that follows."""
    at = struct.unpack("<I", data[4:8])[0]
    end = at + 2 + 12 * struct.unpack("<H", data[at : at + 2])[0]
    return data[:end] + struct.pack("<I", at) + data[end + 4 :]


def mutated(data, seed):
    """`data` with 1 to 8 changes that follow from `seed`: a bit, a byte, a run of bytes, a run cut out or
    doubled. Half of them are in the first 200 bytes."""
    data, rng = bytearray(data), random.Random(seed)
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


BAD = {
    "damaged, by kind": damaged,
    "bombs": bombs,
    "no known white": no_known_white,
    "not images": not_images,
}
