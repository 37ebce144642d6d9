"""A decoded frame of a video as players show it: upright, with square pixels, in SDR colors.

picture(frame, look_of(stream, opened_as))      # RGB PIL image

`look_of` reads what the decoder says of the frame it has just given; the pixels can be converted later.
"""

import math
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from .images import MAX_PIXELS

# A display matrix takes the point (x, y), y downwards, to (a x + c y, b x + d y). The signs of a, b, c and d:
ORIENTATIONS = {
    (1, 0, 0, 1): None,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (0, 0, 0, 0): None,
}
# Transfer functions and primaries, as ITU-T H.273 numbers them.
PQ, HLG, BT2020, UNKNOWN = 16, 18, 9, 2
HDR = {PQ: "PQ", HLG: "HLG"}
SDR_WHITE = 203.0  # nits of SDR white in HDR video, ITU-R BT.2408
HLG_PEAK = 1000.0  # nits, and the system gamma of such a screen, ITU-R BT.2100
HLG_GAMMA = 1.2
SDR_GAMMA = 2.4  # of an SDR screen, ITU-R BT.1886
LUMINANCE_2020 = np.array([0.2627, 0.6780, 0.0593], np.float32)
# Linear BT.2020 to linear BT.709, ITU-R BT.2087.
TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)


class Look(NamedTuple):
    aspect: Fraction  # width of a pixel, over its height
    transfer: int  # ITU-T H.273
    primaries: int


def look_of(stream, opened_as):
    """The Look of the frame that the decoder of a PyAV stream gave last. `opened_as` is the pixel aspect of
    the decoder before the first frame: a broadcast changes it, and what the container says is then out of
    date."""
    context = stream.codec_context
    changed = context.sample_aspect_ratio != opened_as
    aspect = context.sample_aspect_ratio if changed else stream.sample_aspect_ratio
    return Look(aspect or Fraction(1), context.color_trc, context.color_primaries)


def picture(frame, look):
    """A PyAV frame as an RGB PIL image. Its width is scaled where pixels are not square. HDR (PQ, HLG) and
    BT.2020 are converted to SDR in BT.709, see `sdr`. ValueError for pixels so wide that the image would be
    over the limit of `open_image`."""
    size = {}
    if look.aspect != 1:
        width = max(1, int(frame.width * look.aspect))  # as FFmpeg's scale=iw*sar:ih
        if width * frame.height > MAX_PIXELS:
            raise ValueError(f"pixels of {look.aspect} make frames of {width} x {frame.height}, too large")
        size = dict(width=width, height=frame.height, interpolation="BICUBIC")
    if look.transfer in HDR or look.primaries == BT2020:
        if frame.colorspace == UNKNOWN:
            frame.colorspace = BT2020
        pixels = frame.reformat(format="rgb48le", threads=1, **size).to_ndarray()
        return _upright(Image.fromarray(sdr(pixels, look)), frame)
    return _upright(frame.to_image(threads=1, **size), frame)


def _upright(image, frame):
    """`image` turned and mirrored as the display matrix of `frame` says."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), np.int32).tolist()
    least = max(map(abs, (a, b, c, d))) / 50  # about one degree
    signs = tuple((value > least) - (value < -least) for value in (a, b, c, d))
    if signs not in ORIENTATIONS:  # not a multiple of 90 degrees
        return image.rotate(-math.degrees(math.atan2(b, a)), expand=True)
    turn = ORIENTATIONS[signs]
    return image if turn is None else image.transpose(turn)


def sdr(pixels, look):
    """uint16 RGB (H, W, 3) of HDR or BT.2020 as uint8 RGB in BT.709.

    Light is scaled so that SDR white at 203 nits comes out as white, and what is brighter is clipped: a
    picture graded in SDR and carried in HDR comes back as it was."""
    light = _linear(look.transfer)[pixels]  # (H, W, 3), 1 is SDR white; of HLG, light of the scene
    if look.transfer == HLG:
        scene = light @ LUMINANCE_2020  # (H, W)
        light *= (HLG_PEAK / SDR_WHITE * scene ** (HLG_GAMMA - 1))[..., None]
    if look.primaries != 1:  # BT.709; HDR that names no primaries is BT.2020
        light = light @ TO_BT709.T
    return (255 * light.clip(0, 1) ** (1 / SDR_GAMMA) + 0.5).astype(np.uint8)


@lru_cache
def _linear(transfer):
    """float32 (65536,): the linear light of each value of a channel. ITU-R BT.2100 for PQ and HLG."""
    value = np.linspace(0, 1, 65536)
    if transfer == PQ:
        power = value ** (32 / 2523)
        light = (np.maximum(power - 107 / 128, 0) / (2413 / 128 - 2392 / 128 * power)) ** (8192 / 1305)
        light *= 10_000 / SDR_WHITE
    elif transfer == HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(value <= 0.5, value**2 / 3, (np.exp((value - c) / a) + b) / 12)
    else:
        light = value**SDR_GAMMA
    return light.astype(np.float32)
