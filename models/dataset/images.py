"""The pixels of an image file. `open_image` is the only function of this project that decodes one."""

import os
import re
import stat
import struct
import zlib
from contextlib import suppress
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2

# EPS and PDF are left out on purpose: Pillow hands them to other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
MAX_PIXELS = 89_478_485  # Pillow's own limit (a quarter GB as RGB); a JPEG over it is decoded smaller
# Of a progressive JPEG, which libjpeg holds all at once in two bytes each (716 MB): as many as MAX_PIXELS of
# CMYK have. 200 megapixels with colors at half the width and height have 300 million.
MAX_COEFFICIENTS = 4 * MAX_PIXELS
MAX_SCANS = 500  # of a JPEG, each a pass over the whole image; libjpeg-turbo's own fuzzers stop there
SEGMENT = re.compile(rb"\xff([\xc0-\xcf\xd9-\xfe])")  # a marker that libjpeg takes for one, with a length
# What Pillow's decoders raise on damaged files, beside OSError (tests/corpus: truncated, mutated, bombs).
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
HEIC = rb"(?s).{4}ftyp(?=hei|hev|mi[fa]|msf)(?!.{,60}avi[fs])"  # mif1 is the first brand of some AVIFs, too
HEIC_NEEDS = "pip install pillow-heif"
HEIC_SUFFIXES = {".heic", ".heics", ".heif", ".heifs", ".hif"}
HDR = {16, 18}  # the transfer characteristics of PQ and HLG in ITU-T H.273
RAW = "it is a raw photograph; develop it, say with darktable, and save it as JPEG"
# How raw photographs begin that are no TIFFs, or almost: Canon, Fujifilm, Minolta, Olympus, Panasonic, Phase
# One, Sigma.
RAW_HEADS = (
    rb"(?s)(II\*\0|MM\0\*).{4}(CR|IIII|MMMM)|II.{4}HEAPCCDR|.{4}ftypcrx|FUJIFILMCCD-RAW"
    rb"|\0MRM|II(RO|RS)|MMOR|IIU\0|FOVb"
)
RAW_PHOTOMETRIC = {32803, 34892}  # a color filter array; linear raw
# Sony, Epson, Samsung (2), Kodak, Nikon, lossy DNG, Kodak, Pentax, by ExifTool's table of TIFF compressions.
RAW_COMPRESSION = {32767, 32769, 32770, 32772, 32867, 34713, 34892, 65000, 65535}
DNG_VERSION = 50706
# How videos begin: MP4 and QuickTime; Matroska and WebM, AVI, Ogg, FLV, MPEG-PS, ASF (WMV); MPEG-TS, also
# with four bytes before each packet.
VIDEO = (
    rb"(?s).{4}ftyp(?!avi[fs]|hei|hev|mi[fa]|msf|crx)|.{4}(moov|mdat|wide|free|skip)"
    rb"|\x1a\x45\xdf\xa3|RIFF.{4}AVI |OggS|FLV\x01|\0\0\x01[\xba\xb3]|0&\xb2u\x8ef\xcf\x11"
    rb"|G.{187}G.{187}G|.{4}G.{191}G.{191}G"
)
VIDEO_SUFFIXES = set(
    ".3gp .asf .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .webm .wmv".split()
)  # not .ts, which is also TypeScript
MAX_DIRECTORIES = 32  # of a TIFF that are looked at; a raw photograph has up to ten
# Other files found in folders of images: how they begin, and the error for each. The last one matches
# anything.
NOT_IMAGES = {
    rb"\Z": "it is empty",
    RAW_HEADS: RAW,
    HEIC: f"it is a HEIC photo; to read it: {HEIC_NEEDS}",
    rb"(?s).{4}ftyp(?!avi|mif|msf)": "it is a video",
    rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype )?html": "it is a web page, so its download went wrong",
    rb"(?i)(\xef\xbb\xbf)?\s*<(\?xml|!doctype svg|svg)": "it is a drawing (SVG); save it as PNG",
    rb"8BPS": "it is a Photoshop file; save it as PNG",
    rb"version https://git-lfs": "it is a Git LFS pointer; fetch the image with: git lfs pull",
    rb"": f"it is not one of the formats read here ({', '.join(FORMATS)}), or its beginning is damaged",
}


def image_suffixes():
    """(endings of the files that `open_image` reads, endings of those it would read with pillow-heif): two
    sets of str such as ".jpg", in lower case."""
    found = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
    if find_spec("pillow_heif"):
        return found | HEIC_SUFFIXES, set()
    return found, HEIC_SUFFIXES


def check_file(path):
    """`path` as a Path. ValueError for a folder, and for a pipe, which would block when opened."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "pipe, socket or device"
        raise ValueError(f"{path}: it is a {kind}, not a file")
    return Path(path)


def open_image(file):
    """An image file (path or binary file object) as an upright RGB PIL image, see `upright_rgb`. A JPEG of
    more than MAX_PIXELS comes at 1/2, 1/4 or 1/8 of its width and height. HEIC needs the package pillow-heif.

    Raises ValueError with the reason when it cannot be decoded, OSError when it is missing or may not be
    read."""
    if isinstance(file, (str, os.PathLike)):
        with open(check_file(file), "rb") as opened:
            return _decode(opened, file)
    return _decode(file, "image")


def format_of(path):
    """Pillow's name of the format of an image file, by its content, such as "JPEG"; None for a file that
    `open_image` does not read. Nothing is decoded."""
    try:
        with open(check_file(path), "rb") as file, opened(file) as image:
            return image.format
    except DECODE_ERRORS:
        return None


def is_video(source):
    """Whether a file (path or binary file object) is a video, by its first bytes. OSError when it is missing
    or may not be read, ValueError for a folder or pipe."""
    if isinstance(source, (str, os.PathLike)):
        with open(check_file(source), "rb") as file:
            return is_video(file)
    source.seek(0)
    head = source.read(400)
    source.seek(0)
    return bool(re.match(VIDEO, head))


def date_of(path):
    """When an image was taken, by its EXIF: "2024-05-31 18:30:05", by the clock of the camera. None
    without such a date, and for a file that `open_image` does not read. Nothing is decoded."""
    try:
        with open(check_file(path), "rb") as file, opened(file) as image:
            exif = Image.Image.getexif(image)  # that of a PNG file decodes it all
            places = [(exif.get_ifd(0x8769), 0x9003), (exif.get_ifd(0x8769), 0x9004), (exif, 0x0132)]
            dates = [tags.get(tag) for tags, tag in places]  # taken, digitized, changed
    except DECODE_ERRORS:
        return None
    for date in dates:
        with suppress(ValueError):  # 0000:00:00, blanks
            return str(datetime.strptime(str(date)[:19], "%Y:%m:%d %H:%M:%S"))
    return None


def upright_rgb(image):
    """A PIL image of any mode as RGB: EXIF orientation applied, transparency composited on white, 16-bit grey
    scaled to 8 bits, the first frame of an animation. ValueError for pixels without a known white (32-bit,
    floating-point)."""
    return _rgb(ImageOps.exif_transpose(image))


def _decode(file, name):
    try:
        with opened(file) as image:
            if image.width * image.height > MAX_PIXELS:
                _reduce(image)
            _check_and_repair(image)
            ImageOps.exif_transpose(image, in_place=True)
            return _rgb(image)
    except UnidentifiedImageError:
        file.seek(0)
        head = file.read(100)
        reason = next(reason for start, reason in NOT_IMAGES.items() if re.match(start, head))
        raise ValueError(f"{name}: cannot identify an image: {reason}") from None
    except DECODE_ERRORS as error:
        raise ValueError(f"{name}: cannot be decoded as an image ({type(error).__name__}: {error})") from None


def opened(file, formats=FORMATS):
    """A binary file as a PIL image, not yet decoded: `Image.open` without its limit, which warns on stderr of
    images that `_reduce` refuses, and refuses JPEGs that it can read. HEIC is read where all formats are.

    Raises UnidentifiedImageError, and ValueError for a raw photograph."""
    file.seek(0)
    head = file.read(100)
    if re.match(RAW_HEADS, head):
        raise UnidentifiedImageError
    Image.init()
    for name in formats:
        factory, accept = Image.OPEN[name]
        accepted = accept(head[:16])  # a text where Pillow lacks the decoder
        if not accepted or isinstance(accepted, str):
            continue
        if name == "TIFF":
            _refuse_raw(file, head)
        file.seek(0)
        try:
            return factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # those for which Image.open goes on
            continue
    if formats == FORMATS and re.match(HEIC, head):
        return _heic(file)
    raise UnidentifiedImageError


def _heic(file):
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise UnidentifiedImageError from None
    file.seek(0)
    try:
        image = HeifImageFile(file)
    except SyntaxError as error:
        raise ValueError(f"damaged HEIC photo: {error}") from None
    if image.info.get("nclx_profile", {}).get("transfer_characteristics") in HDR:
        raise ValueError("HEIC photo in HDR (PQ or HLG), which would come out pale; save it as SDR")
    return image


def _refuse_raw(file, head):
    """ValueError for a TIFF that is a raw photograph, or whose first page is only a thumbnail of another."""
    pages = list(_directories(file, head))
    for _, page in pages:
        is_raw = page.get(262) in RAW_PHOTOMETRIC or page.get(259) in RAW_COMPRESSION
        if is_raw or DNG_VERSION in page:
            raise ValueError(RAW)
    for below, page in pages[1:]:
        first, width, height = pages[0][1], page.get(256, 0), page.get(257, 0)
        is_full = not _is_reduced(page) and width * height > first.get(256, 0) * first.get(257, 0)
        if is_full and (below or _is_reduced(first)):
            size = f"{width} x {height} pixels"
            raise ValueError(f"its first page is a thumbnail; save the page of {size} as a file of its own")


def _directories(file, head):
    """Yield (whether it is below a page, ImageFileDirectory_v2) of the first directories of a TIFF: the pages
    and, among the SubIFDs of a page, the other sizes of it."""
    end = file.seek(0, os.SEEK_END)
    start = head[: 16 if head[2:3] == b"+" else 8]  # of a BigTIFF or a TIFF
    todo, seen = [(False, ImageFileDirectory_v2(start).next)], set()
    while todo and len(seen) < MAX_DIRECTORIES:
        below, offset = todo.pop(0)
        if offset in seen or not 0 < offset < end:
            continue
        seen.add(offset)
        page = ImageFileDirectory_v2(start)
        file.seek(offset)
        page.load(file)
        yield below, page
        todo += [(True, at) for at in page.get(330, ())] + [(below, page.next)]


def _is_reduced(page):
    return bool(page.get(254, 0) & 1) or page.get(255) == 2  # NewSubfileType, SubfileType


def _reduce(image):
    """Have a JPEG of more than MAX_PIXELS decoded at 1/2, 1/4 or 1/8 of its width and height, by libjpeg.

    Raises ValueError for other formats, and for a progressive JPEG that takes too much memory even so."""
    width, height = image.size
    size = f"{width} x {height} pixels"
    if image.format not in ("JPEG", "MPO"):
        raise ValueError(f"{size} is over the limit of {MAX_PIXELS:,}; scale it down")
    image.fp.seek(0)
    jpeg = image.fp.read()
    across, down = (max(factors) for factors in list(zip(*image.layer))[1:3])  # of each component
    coefficients = width * height * sum(h * v for _, h, v, _ in image.layer) // (across * down)
    if coefficients > 64 * 8 * len(jpeg):  # 64 are a block, and a block takes one bit or more
        raise ValueError(f"{len(jpeg):,} bytes cannot hold {size}; the file is cut off or damaged")
    if _is_buffered(jpeg) and coefficients > MAX_COEFFICIENTS:
        count = f"{coefficients:,} coefficients of a progressive JPEG"
        remedy = "scale it down, or save it as baseline JPEG"
        raise ValueError(f"{size}: {count} are over the limit of {MAX_COEFFICIENTS:,}; {remedy}")
    scale = next(scale for scale in (2, 4, 8) if width * height <= MAX_PIXELS * scale**2)
    image.draft(None, (width // scale, height // scale))


def _is_buffered(jpeg):
    """Whether libjpeg holds all coefficients of a JPEG (bytes) at once: those of several scans.

    Raises ValueError for one that is lossless or arithmetic-coded, and for a damaged header."""
    at, frame, components = 2, None, 0
    while jpeg[at : at + 1] == b"\xff":
        marker, length = jpeg[at + 1], int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if marker == 0xDA and frame in (0xC0, 0xC1, 0xC2):
            return frame == 0xC2 or jpeg[at + 4] < components
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame, components = marker, jpeg[at + 9]
        at += 1 if marker == 0xFF else 2 + length
    raise ValueError("its header is damaged, or it is lossless or arithmetic-coded; save it again")


def _scans(jpeg):
    """The number of scans of a JPEG (bytes): not those of a thumbnail in its header, or of a video behind its
    end."""
    at, scans = 0, 0
    while (found := SEGMENT.search(jpeg, at)) and found[1] != b"\xd9":
        scans += found[1] == b"\xda"
        at = found.end() + int.from_bytes(jpeg[found.end() : found.end() + 2], "big")
    return scans


def _check_and_repair(image):
    """Repair or refuse what Pillow 13 decodes for hours, or to wrong pixels. tests/corpus has a file for each
    case."""
    if image.format in ("JPEG", "MPO"):
        image.fp.seek(0)
        scans = _scans(image.fp.read())
        if scans > MAX_SCANS:
            raise ValueError(f"{scans} scans are over the limit of {MAX_SCANS}; save it again")
    if image.format == "TIFF" and image.mode.startswith("I"):
        (bits, *_), photometric, (form, *_) = (image.tag_v2.get(tag, (1,)) for tag in (258, 262, 339))
        if (bits, photometric, form) != (16, 1, 1):  # Pillow ignores 12 bits, white-is-zero and the sign
            tags = f"BitsPerSample {bits}, PhotometricInterpretation {photometric}, SampleFormat {form}"
            raise ValueError(f"grey TIFF with {tags} has no known white here; save it as 8 bit")
    if image.format == "PNG" and image.mode == "P" and image.palette is None:
        raise ValueError("its pixels are indices into a palette, and the palette is missing")
    if image.format == "PNG" and isinstance(image.info.get("transparency"), (int, tuple)) and image.tile:
        coding = image.tile[0].args
        if "16" in coding:  # Pillow keeps 8 bits of each pixel, and compares them with all 16 of the color
            raise ValueError("16 bit with one transparent color; save it with an alpha channel, or as 8 bit")
        image.info["transparency"] *= {"L;2": 85, "L;4": 17}.get(coding, 1)  # Pillow scales the pixels only


def _rgb(image):
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known white; save it as 8 or 16 bit")
    if image.mode.startswith("I"):  # 16-bit grey; convert('RGB') clips it to near white
        image = image.convert("I")
        low, high = image.getextrema()
        if low < 0 or high > 65535:
            raise ValueError(
                f"32-bit pixels from {low} to {high} have no known white; save it as 8 or 16 bit"
            )
        image = image.point(lambda value: value * (1 / 257))  # a line of its own frees the copy above
        return image.convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        return white
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")  # convert always copies
