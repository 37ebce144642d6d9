"""Drawn videos as files: what motion.py plans, in H.264.

write(pair(index), folder, font)     # two files, one with the frames of the other in reverse order
"""

from apps.video.demo import write_video

from .drawing import draw, glyph
from .layout import Thing
from .vocabulary import LIGHT

FRAMES = 24
RATE = 10  # frames per second
PIXELS = 224  # width and height of a frame
QUALITY = "27"  # x264's constant rate factor: 15 kB per video


def write(clips, folder, font):
    """Write the two clips of a pair into `folder`. Returns the bytes written."""
    frames = list(render(clips[0], font))
    write_video(folder / clips[0].name, frames, RATE, crf=QUALITY)
    write_video(folder / clips[1].name, frames[::-1], RATE, crf=QUALITY)
    return sum((folder / clip.name).stat().st_size for clip in clips)


def render(clip, font):
    """Yield the frames of a Clip, FRAMES RGB images of PIXELS x PIXELS. `font` comes from `load_font`."""
    from PIL import Image

    setting = draw(clip.scene, font)
    light = LIGHT.get(clip.scene.weather)
    shade = [0.5 + 0.5 * c for c in light.shade] if light else [1, 1, 1]
    sprites = [(mover, sprite(mover, font, shade)) for mover in clip.movers]
    for number in range(FRAMES):
        frame, time = setting.copy(), number / (FRAMES - 1)
        for mover, image in reversed(sprites):  # the main thing in front
            paste(frame, image, mover.box(time), mover.width(time))
        yield frame.resize((PIXELS, PIXELS), Image.Resampling.LANCZOS)


def sprite(mover, font, shade):
    """The emoji of a Mover at the start, RGBA, its RGB multiplied by `shade`."""
    from PIL import Image

    image = glyph(font, Thing(mover.name, mover.color, "", mover.glyph, mover.box(0), mover.flip))
    bands = [band.point(lambda v, by=by: round(v * by)) for band, by in zip(image.split(), [*shade, 1])]
    return Image.merge("RGBA", bands)


def paste(frame, image, box, width):
    """Paste an RGBA image into its box on a frame, as wide as the share `width`; mirrored if negative."""
    from PIL import Image, ImageOps

    x0, y0, x1, y1 = box
    scale = min((x1 - x0) / image.width, (y1 - y0) / image.height)
    size = max(1, round(image.width * scale * abs(width))), max(1, round(image.height * scale))
    image = (ImageOps.mirror(image) if width < 0 else image).resize(size, Image.Resampling.LANCZOS)
    frame.paste(image, (round((x0 + x1 - size[0]) / 2), round((y0 + y1 - size[1]) / 2)), image)
