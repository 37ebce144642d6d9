"""Photographs as phones and cameras make them: large JPEGs, HEIC, raw files. The right pixels are those that
a file was made from."""

import io
import struct
import sys
from functools import cache

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from models.dataset import format_of, image_suffixes, open_image
from models.dataset.images import MAX_COEFFICIENTS, MAX_PIXELS
from tests.corpus.encoders import RGB, exif, png, saved, scene, stored, tiff

pytestmark = pytest.mark.filterwarnings("error")  # one message: none of Pillow's warnings beside it
SMALL = scene(36, 48)
KINDS = {
    "baseline": dict(format="JPEG"),
    "grey": dict(format="JPEG", mode="L"),
    "CMYK": dict(format="JPEG", mode="CMYK"),
    "progressive": dict(format="JPEG", progressive=True),
    "MPO": dict(format="MPO", save_all=True, append_images=[Image.new("RGB", (48, 36))]),
}


@cache
def large(kind):
    """SMALL as a JPEG (bytes) of 108 megapixels."""
    return saved(Image.fromarray(SMALL).resize((12_000, 9_000), Image.Resampling.BILINEAR), **KINDS[kind])


def resized(jpeg, width, height):
    """A JPEG (bytes) whose header has another size."""
    at = next(jpeg.index(frame) for frame in (b"\xff\xc0", b"\xff\xc2") if frame in jpeg)
    return jpeg[: at + 5] + struct.pack(">HH", height, width) + jpeg[at + 9 :]


def solid(width, height):
    """A grey JPEG (bytes). It need not be encoded: each of its blocks is the six bits 001010."""
    head = resized(saved(np.full((8, 8), 128, np.uint8), "JPEG"), width, height)
    blocks = -(-width // 8) * -(-height // 8)
    return head[: head.index(b"\xff\xda") + 10] + b"\x28\xa2\x8a" * (blocks // 4 + 1) + b"\xff\xd9"


def difference(image, want):
    """The mean difference of an image from pixels (H, W, 3), at the size of these."""
    small = image.resize(want.shape[1::-1], Image.Resampling.BOX)
    return np.abs(np.asarray(small) - want.astype(float)).mean()


@pytest.mark.parametrize("kind", KINDS)
def test_large_jpeg_comes_at_half_its_size(kind):
    image = open_image(io.BytesIO(large(kind)))
    want = Image.fromarray(SMALL).convert(KINDS[kind].get("mode", "RGB")).convert("RGB")
    assert image.mode == "RGB" and image.size == (6_000, 4_500)
    assert difference(image, np.asarray(want)) < 2


@pytest.mark.parametrize("turn", range(2, 9))
def test_large_jpeg_is_upright(turn):
    tags = exif(turn).tobytes()
    jpeg = large("baseline")
    image = open_image(
        io.BytesIO(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(tags) + 2) + tags + jpeg[2:])
    )
    want = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(saved(SMALL, "PNG", exif=exif(turn))))))
    assert image.size == ((6_000, 4_500) if turn < 5 else (4_500, 6_000))
    assert difference(image, want) < 2


@pytest.mark.parametrize("size, scale", [((16_320, 12_240), 2), ((32_000, 12_000), 4), ((65_500, 1_400), 2)])
def test_larger_jpeg_comes_smaller_still(size, scale):
    """200 megapixels as phones have, an aerial photograph, a panorama."""
    image = open_image(io.BytesIO(solid(*size)))
    assert image.size == (size[0] // scale, size[1] // scale)
    assert image.getextrema() == ((128, 128),) * 3


def test_jpeg_at_the_limit_keeps_its_size():
    height = MAX_PIXELS // 10_000
    assert open_image(io.BytesIO(solid(10_000, height))).size == (10_000, height)


def several_scans(progressive):
    """Headers of a JPEG of 400 megapixels of which libjpeg would hold all coefficients."""
    jpeg = saved(RGB, "JPEG", subsampling=0, progressive=progressive)
    at = jpeg.index(b"\xff\xda")
    first = b"\xff\xda\0\x08\x01\x01\0\0\x3f\0"  # a scan of one component of the three
    return resized(jpeg[:at] + (jpeg[at:] if progressive else first), 20_000, 20_000) + bytes(3_000_000)


@pytest.mark.parametrize(
    "data, reason",
    [
        (several_scans(True), f"1,200,000,000 coefficients.*{MAX_COEFFICIENTS:,}.*baseline"),
        (several_scans(False), "1,200,000,000 coefficients"),
        (resized(saved(RGB, "JPEG"), 12_000, 9_000), "bytes cannot hold 12000 x 9000"),
        (
            resized(saved(RGB, "JPEG"), 12_000, 9_000).replace(b"\xff\xc0", b"\xff\xc3") + bytes(10**6),
            "lossless",
        ),
        (png(RGB, 8, 2, size=(12_000, 9_000)), f"12000 x 9000 pixels is over the limit of {MAX_PIXELS:,}"),
        (png(RGB, 8, 2, size=(60_000, 9_000)), "60000 x 9000 pixels"),
    ],
    ids=["progressive", "one scan per component", "cut", "lossless", "PNG", "PNG twice the limit"],
)
def test_image_that_takes_too_much_memory_is_refused(data, reason, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(data)
    with pytest.raises(ValueError, match=rf"photo\.jpg: .*{reason}"):
        open_image(tmp_path / "photo.jpg")


@pytest.mark.slow
@pytest.mark.parametrize("size", [(12_000, 9_000), (16_320, 12_240)])
def test_features_of_a_large_jpeg_are_those_of_the_full_decode(size, lite0, monkeypatch):
    """python -m pytest tests/models/test_images.py -m slow -s"""
    import torch
    from skimage import data

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # Pillow decodes all pixels
    found = {}
    for name in ("astronaut", "chelsea", "coffee", "hubble_deep_field", "retina", "rocket"):
        file = io.BytesIO()
        Image.fromarray(getattr(data, name)()).resize(size).save(file, "JPEG", quality=80)
        images = open_image(file), Image.open(file).convert("RGB")
        assert images[0].width < images[1].width == size[0]
        rows = lite0.encode(torch.stack([lite0.preprocess(image) for image in images]))
        found[name] = torch.cosine_similarity(*rows, dim=0).item()
    print(f"\n{size[0]} x {size[1]}: lowest cosine {min(found.values()):.5f} of", *found)
    assert min(found.values()) > 0.98


def pages(*parts, **options):
    """A TIFF (bytes) of the pages (pixels, how tifffile writes them)."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file, **options) as out:
        for pixels, how in parts:
            out.write(pixels, **how)
    return file.getvalue()


SENSOR = np.arange(120 * 160, dtype=np.uint16).reshape(120, 160)
MOSAIC = dict(photometric=32803, extratags=[(33421, 3, 2, (2, 2)), (33422, 1, 4, bytes([0, 1, 1, 2]))])
THUMBNAIL = RGB, dict(photometric="rgb", subfiletype=1)
OWNER = RGB, dict(photometric="rgb", subfiletype=1, subifds=1)
PLAIN = RGB, dict(photometric="rgb")
LARGER = scene(120, 168), dict(photometric="rgb")


def compressed(number):
    """A thumbnail, and behind it pixels in the compression of a camera maker."""
    data = pages(THUMBNAIL, (SENSOR, dict(photometric="minisblack")))
    tag = struct.pack("<HHI", 259, 3, 1)
    at = data.rindex(tag) + len(tag)
    return data[:at] + struct.pack("<H", number) + data[at + 2 :]


RAW = {
    "Nikon": pages(OWNER, (SENSOR, MOSAIC)),
    "Nikon, big-endian": pages(OWNER, (SENSOR, MOSAIC), byteorder=">"),
    "a page behind the thumbnail": pages(THUMBNAIL, (SENSOR, MOSAIC)),
    "DNG": pages((RGB, dict(photometric="rgb", subfiletype=1, extratags=[(50706, 1, 4, b"\1\4\0\0")]))),
    "linear DNG": pages(THUMBNAIL, (np.dstack([SENSOR] * 3), dict(photometric=34892))),
    "Sony": compressed(32767),
    "Samsung": compressed(32770),
    "Kodak": compressed(65000),
    "Pentax": tiff(bytes(99), {259: 65535, 262: 32803}),
    "Canon CR2": b"II*\0\x10\0\0\0CR\2\0" + bytes(99),
    "Canon CR3": b"\0\0\0\x18ftypcrx \0\0\0\1crx isom",
    "Canon CRW": b"II\x1a\0\0\0HEAPCCDR" + bytes(99),
    "Fujifilm": b"FUJIFILMCCD-RAW 0201FF383501",
    "Olympus": b"IIRO\x08\0\0\0" + bytes(99),
    "Panasonic": b"IIU\0\x18\0\0\0" + bytes(99),
    "Phase One": b"MM\0*\0\0\0\x10MMMMRawT" + bytes(99),
}


@pytest.mark.parametrize("ending", ["jpg", "tif"])
@pytest.mark.parametrize("camera", RAW)
def test_raw_photograph_is_refused(camera, ending, tmp_path):
    path = tmp_path / f"photo.{ending}"
    path.write_bytes(RAW[camera])
    with pytest.raises(ValueError, match=rf"photo\.{ending}: .*raw photograph.*JPEG"):
        open_image(path)


@pytest.mark.parametrize("larger", ["page", "SubIFD"])
def test_tiff_whose_first_page_is_a_thumbnail_is_refused(larger):
    first = THUMBNAIL if larger == "page" else (RGB, dict(photometric="rgb", subifds=1))
    with pytest.raises(ValueError, match="first page is a thumbnail.*168 x 120"):
        open_image(io.BytesIO(pages(first, LARGER)))


ORDINARY = {
    "scans of two sizes": pages(PLAIN, LARGER),
    "many scans": pages(*[PLAIN] * 50, LARGER),
    "a pyramid in SubIFDs": pages((RGB, dict(photometric="rgb", subifds=1)), (RGB[::2, ::2], THUMBNAIL[1])),
    "a pyramid in pages": pages(PLAIN, (RGB[::2, ::2], THUMBNAIL[1])),
    "a page that says it is a thumbnail": pages(THUMBNAIL),
    "thumbnails alone": pages(THUMBNAIL, (LARGER[0], THUMBNAIL[1])),
    "BigTIFF": pages(PLAIN, LARGER, bigtiff=True),
    "big-endian": pages(PLAIN, LARGER, byteorder=">"),
    "a raw photograph developed": saved(RGB, "TIFF", compression="tiff_lzw"),
}


@pytest.mark.parametrize("kind", ORDINARY)
def test_ordinary_tiff_gives_its_first_page(kind):
    assert np.array_equal(open_image(io.BytesIO(ORDINARY[kind])), RGB)


@pytest.fixture
def heic():
    """(pixels, options) -> the bytes of a HEIC."""
    pillow_heif = pytest.importorskip(
        "pillow_heif", reason="pillow-heif, an optional extra, is not installed"
    )

    def encoded(pixels, **options):
        file = io.BytesIO()
        mode = {1: "RGB", 2: "RGB;16"}[pixels.itemsize]
        image = pillow_heif.from_bytes(mode, pixels.shape[1::-1], pixels.tobytes())
        image.save(file, quality=95, **{"chroma": 444} | options)
        return file.getvalue()

    return encoded


PHOTO = scene(120, 168)


@pytest.mark.parametrize("turn", range(1, 9))
def test_heic_is_upright(turn, heic):
    """The file has the turn twice, as in phones: as transformation, and in the EXIF, which must not count."""
    image = open_image(io.BytesIO(heic(stored(PHOTO, turn), exif=exif(turn).tobytes())))
    assert image.mode == "RGB" and image.size == (168, 120)
    assert difference(image, PHOTO) < 2


@pytest.mark.parametrize("kind", ["10 bit", "tiles", "half colors"])
def test_heic_is_read_whatever_its_name_and_kind(kind, heic, tmp_path):
    pixels = PHOTO.astype(np.uint16) * 257 if kind == "10 bit" else PHOTO
    options = {"tiles": dict(tile_size=64), "half colors": dict(chroma=420)}.get(kind, {})
    for name, brand in (("a.heic", b"heic"), ("b.jpg", b"heix"), ("c.png", b"mif1"), ("d", b"msf1")):
        data = heic(pixels, **options)
        (tmp_path / name).write_bytes(data[:8] + brand + data[12:])
        assert difference(open_image(tmp_path / name), PHOTO) < 4


@pytest.mark.parametrize("cut", [40, 300, 700])
def test_heic_cut_short_is_refused(cut, heic):
    with pytest.raises(ValueError, match="image: .*"):
        open_image(io.BytesIO(heic(PHOTO)[:cut]))


@pytest.mark.parametrize("transfer", [16, 18])
def test_heic_in_hdr_is_refused(transfer, heic):
    deep = PHOTO.astype(np.uint16) * 257
    with pytest.raises(ValueError, match="HDR.*SDR"):
        open_image(io.BytesIO(heic(deep, color_primaries=9, transfer_characteristics=transfer)))


@pytest.mark.parametrize("brand", ["heic", "heix", "hevc", "mif1", "msf1"])
def test_heic_without_pillow_heif_names_the_package(brand, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "IMG_0001.jpg").write_bytes(b"\0\0\0\x18ftyp" + brand.encode() + bytes(500))
    with pytest.raises(ValueError, match=r"IMG_0001\.jpg: .*HEIC.*pip install pillow-heif"):
        open_image(tmp_path / "IMG_0001.jpg")


def test_avif_needs_no_pillow_heif(monkeypatch):
    """Whether its first brand is its own or that of all such containers."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    data = saved(PHOTO, "AVIF", quality=95)
    for brand in (b"avif", b"mif1"):
        assert difference(open_image(io.BytesIO(data[:8] + brand + data[12:])), PHOTO) < 3


def test_suffixes_tell_what_pillow_heif_would_add(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    found, missing = image_suffixes()
    assert {".jpg", ".png", ".avif"} <= found and missing == {".heic", ".heics", ".heif", ".heifs", ".hif"}
    monkeypatch.setitem(sys.modules, "pillow_heif", sys)
    assert image_suffixes() == (found | missing, set())


@pytest.mark.parametrize("behind", [True, False], ids=["video behind its end", "thumbnail in its header"])
def test_scans_of_other_files_inside_a_jpeg_do_not_count(behind):
    """A motion photo has a video behind its end; a thumbnail is a JPEG of its own in a segment."""
    jpeg, others = saved(RGB, "JPEG"), b"\xff\xda\0\x02" * 9_999
    segment = b"\xff\xe5" + struct.pack(">H", len(others) + 2) + others
    data = jpeg + others if behind else jpeg[:2] + segment + jpeg[2:]
    assert open_image(io.BytesIO(data)).tobytes() == open_image(io.BytesIO(jpeg)).tobytes()


def test_format_of_a_heic_is_told_without_its_ending(heic, tmp_path):
    (tmp_path / "photo").write_bytes(heic(RGB))
    assert format_of(tmp_path / "photo") in ("HEIF", "HEIC")


def test_format_is_told_by_content_of_a_photograph_over_the_limit_too(tmp_path):
    """Pillow's own `Image.open` raises of twice the limit."""
    small = saved(RGB, "JPEG")
    for content, want in ((resized(small, 20_000, 12_000), "JPEG"), (png(RGB, 8, 2), "PNG"), (b"", None)):
        (tmp_path / "photo").write_bytes(content)
        assert format_of(tmp_path / "photo") == want
    assert format_of(tmp_path) is None and format_of(tmp_path / "none") is None
