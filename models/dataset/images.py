"""The pixels of an image file: `open_image` is the only place of the project that decodes one."""

import os
import re
import stat
import struct
import zlib
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

# EPS and PDF are left out on purpose: Pillow hands them to other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
MAX_SCANS = 500  # of a JPEG, each a pass over all of it: a small file can ask for hours. libjpeg-turbo's own fuzzers stop there
MAX_PIXELS = 89_478_485  # Pillow's own limit (a quarter GB as RGB), here an error and not a warning
# What Pillow's decoders were seen to raise on damaged files, beside OSError (tests/corpus.py: truncated, mutated, bombs).
DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    RuntimeError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    MemoryError,
    AttributeError,
    AssertionError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
# What else lies in folders of images: how it begins, and what to say.
NOT_IMAGES = {
    rb"\Z": "it is empty",
    rb"(?s).{4}ftyp(hei|hev|mif1|msf1)": "it is a HEIC photo; make a JPEG of it, for example with the package pillow-heif",
    rb"(?s).{4}ftyp(?!avi)": "it is a film",
    rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype )?html": "it is a web page, so its download went wrong",
    rb"(?i)(\xef\xbb\xbf)?\s*<(\?xml|!doctype svg|svg)": "it is a drawing (SVG); save it as PNG",
    rb"8BPS": "it is a Photoshop file; save it as PNG",
    rb"version https://git-lfs": "it is Git LFS's pointer to the image; fetch that with: git lfs pull",
    rb"": f"it is not an image of a kind read here ({', '.join(FORMATS)}), or its beginning is damaged",
}


def check_file(path):
    """`path` as a Path. ValueError when it is a folder or a pipe (which to open would wait for ever) and not a file."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise ValueError(
            f"{path}: it is a {'folder' if stat.S_ISDIR(mode) else 'pipe, socket or device'}, not a file"
        )
    return Path(path)


def image_path(image_dir, name):
    """The path of an image inside `image_dir`. Names are somebody's text: one that leads outside raises ValueError."""
    folder = Path(image_dir).resolve()
    path = (folder / name).resolve()
    if not path.is_relative_to(folder) or "\0" in name:
        raise ValueError(f"{name!r} leads out of the image folder {image_dir}")
    return path


def open_image(file):
    """An image file (path or binary file object) as an upright RGB PIL image, see `upright_rgb`.

    Raises ValueError saying why a file can't be decoded; OSError when there is none, or it may not be read."""
    if isinstance(file, (str, os.PathLike)):
        with open(check_file(file), "rb") as opened:
            return _decode(opened, file)
    return _decode(file, "image")


def _decode(file, name):
    try:
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"{image.width} x {image.height} pixels is over the limit of {MAX_PIXELS:,}; scale it down"
                )
            _mend(image)
            ImageOps.exif_transpose(image, in_place=True)
            return _rgb(image)
    except UnidentifiedImageError:
        file.seek(0)
        head = file.read(100)
        what = next(what for start, what in NOT_IMAGES.items() if re.match(start, head))
        raise ValueError(f"{name}: cannot identify an image: {what}") from None
    except DECODE_ERRORS as error:
        raise ValueError(f"{name}: can't be decoded as an image ({type(error).__name__}: {error})") from None


def _mend(image):
    """Put right, or refuse, what Pillow 13 would decode for hours, or to wrong pixels (each is a file of tests/corpus.py)."""
    if image.format in ("JPEG", "MPO"):
        image.fp.seek(0)
        scans = image.fp.read().count(b"\xff\xda")
        if scans > MAX_SCANS:
            raise ValueError(f"{scans} scans are over the limit of {MAX_SCANS}; save it anew")
    if image.format == "TIFF" and image.mode.startswith("I"):
        (bits, *_), photometric, (form, *_) = (image.tag_v2.get(tag, (1,)) for tag in (258, 262, 339))
        if (bits, photometric, form) != (
            16,
            1,
            1,
        ):  # Pillow scales no 12 bits, turns no white-is-zero, tells no sign
            raise ValueError(
                f"grey TIFF with BitsPerSample {bits}, PhotometricInterpretation {photometric} and SampleFormat {form} "
                "has no known white here; save it as 8 bit"
            )
    if image.format == "PNG" and image.mode == "P" and image.palette is None:
        raise ValueError("its pixels are numbers of a palette, and there is no palette")
    if image.format == "PNG" and isinstance(image.info.get("transparency"), (int, tuple)) and image.tile:
        coding = image.tile[0].args
        if "16" in coding:  # Pillow keeps 8 bits of the pixels, and compares those with all 16 of the colour
            raise ValueError(
                "16 bit with one colour that stands for transparency; save it with an alpha channel, or as 8 bit"
            )
        image.info["transparency"] *= {"L;2": 85, "L;4": 17}.get(coding, 1)  # Pillow scales the pixels only


def upright_rgb(image):
    """A PIL image of any mode as RGB: EXIF orientation applied, transparency composited on white, 16-bit grey scaled to 8,
    the first frame of an animation. ValueError for pixels that have no known white (32-bit, floating-point)."""
    return _rgb(ImageOps.exif_transpose(image))


def _rgb(image):
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known white; save it as 8 or 16 bit")
    if image.mode.startswith("I"):  # 16-bit grey; convert('RGB') would clip it to near white
        image = image.convert("I")
        low, high = image.getextrema()
        if low < 0 or high > 65535:
            raise ValueError(
                f"32-bit integer pixels from {low} to {high} have no known white; save it as 8 or 16 bit"
            )
        image = image.point(
            lambda value: value * (1 / 257)
        )  # in its own line, so that the copy above is let go
        return image.convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        return white
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it
