"""The corpus of videos, where PyAV is installed: four shades of a second each, with a white corner above on
the left. What is seen follows from how a file was made, and its turn from the matrix of ISO/IEC 14496-12."""

import os
import struct
from fractions import Fraction
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from models.dataset.frames import every, read_frames
from tests.corpus.trial import Came, write

KINDS = ["videos"] if find_spec("av") else []
SHADES = [(200, 40, 40), (40, 160, 60), (50, 70, 200), (20, 20, 20)]
SHOWN = [0, 0, 1, 1, 2, 2, 3, 3]  # the shade at every half second
# (a, b, c, d): x' = a x + c y, y' = b x + d y.
MATRICES = [(1, 0, 0, 1), (-1, 0, 0, 1), (-1, 0, 0, -1), (1, 0, 0, -1)]
MATRICES += [(0, 1, 1, 0), (0, 1, -1, 0), (0, -1, -1, 0), (0, -1, 1, 0)]


def picture(shade, size=(160, 120)):
    pixels = np.full((size[1], size[0], 3), SHADES[shade], np.uint8)
    pixels[: size[1] // 3, : size[0] // 3] = 255
    return pixels


def video(path, size=(160, 120), rate=5, **options):
    """Write a clip, of which each second can be decoded by itself, and give its bytes."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.gop_size = rate
        for name, value in options.items():
            setattr(stream.codec_context, name, value)
        for n in range(4 * rate):
            frame = av.VideoFrame.from_ndarray(picture(n // rate, size), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


def frames(path, relative=False):
    """The images at every half second."""
    if relative:
        os.chdir(path.parent)
    return [image for _, image in read_frames(path.name if relative else path, every(0.5))]


def shades(path, **options):
    """The shade of each frame at every half second."""
    found = []
    for image in frames(path, **options):
        middle = image.resize((1, 1), box=(80, 60, 160, 120)).getpixel((0, 0))
        found.append(int(np.abs(np.subtract(SHADES, middle)).sum(1).argmin()))
    return Came(found, len(found))


def look(path):
    """[(width, height, where the white corner is)] of the first frame."""
    image = frames(path)[0]
    low = np.asarray(image.resize((2, 2), Image.Resampling.BOX).convert("L"))
    y, x = np.unravel_index(low.argmax(), low.shape)
    return [(*image.size, ("top", "bottom")[y], ("left", "right")[x])]


def turned(data, matrix):
    """An MP4 (bytes) with that display matrix, and what its first frame looks like."""
    a, b, c, d = matrix
    data, at = bytearray(data), data.index(b"tkhd") + 44
    moved = (160 if a + c < 0 else 0, 120 if b + d < 0 else 0)
    data[at : at + 36] = struct.pack(">9i", *(n << 16 for n in (a, b, 0, c, d, 0, *moved)), 1 << 30)
    corner = ("bottom" if b + d < 0 else "top", "right" if a + c < 0 else "left")
    return bytes(data), [(*((160, 120) if a else (120, 160)), *corner)]


def make_clips(folder):
    """Write the videos to `folder`, which must be empty, and return their Cases."""
    if not KINDS:
        return []
    add, made = partial(write, Path(folder), *KINDS), Path(folder, "made")
    made.mkdir(parents=True)
    mp4, ts = video(made / "plain.mp4"), video(made / "plain.ts")
    cases = [add("plain.mp4", mp4, SHOWN, read=shades)]
    for number, matrix in enumerate(MATRICES):
        data, seen = turned(mp4, matrix)
        cases.append(add(f"turn {number}.mp4", data, seen, read=look))
    wide = dict(size=(180, 144), sample_aspect_ratio=Fraction(64, 45))
    cases.append(add("pal.mp4", video(made / "pal.mp4", **wide), [(256, 144, "top", "left")], read=look))
    late = ts[len(ts) // 188 // 5 * 188 :]
    moving = [Image.fromarray(picture(shade)) for shade in range(4)]
    for name in ("moving.webp", "moving.gif", "moving.png"):
        moving[0].save(made / name, save_all=True, append_images=moving[1:], duration=1000, lossless=True)
        cases.append(add(name, (made / name).read_bytes(), SHOWN, read=shades))
    return [
        *cases,
        add("joined.ts", ts * 2, SHOWN * 2, read=shades),
        add("joined three times.ts", ts * 3, SHOWN * 3, read=shades),
        add("late start.ts", late, SHOWN[2:], read=shades),
        add("12:30:00.mp4", mp4, SHOWN, read=partial(shades, relative=True)),
        add("http:clip.mp4", mp4, SHOWN, read=partial(shades, relative=True)),
    ]
