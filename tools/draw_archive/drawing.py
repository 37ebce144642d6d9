"""How a scene looks: its sky, its ground, and its things as emoji glyphs."""

from pathlib import Path
from random import Random

from .grounds import ground
from .layout import SIDE
from .pen import Pen, near
from .vocabulary import DRAWN_BODIES, LEXICON, LIGHT, PAINT, TINTS

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
SKIN = (222, 172, 130)
CLOUDS = {"cloudy": 7, "rain": 8, "sunset": 2, "night": 0}


def load_font(path=FONT):
    """Noto Color Emoji at its only size. Raises ValueError when the font or Pillow's raqm is missing."""
    from PIL import ImageFont, features

    if not Path(path).is_file():
        raise ValueError(
            f"{path}: no such font; apt-get install fonts-noto-color-emoji, "
            "or pass the path of a NotoColorEmoji.ttf with --font"
        )
    if not features.check("raqm"):  # joins a person and an activity into one glyph
        raise ValueError("Pillow was built without raqm; pip install --upgrade pillow")
    return ImageFont.truetype(path, 109, layout_engine=ImageFont.Layout.RAQM)


def draw(scene, font):
    """The scene as a 256 x 256 RGB image. `font` comes from `load_font`."""
    from PIL import Image

    rng = Random(f"{scene.seed}/{scene.index}/draw")
    canvas, plain, shade = Image.new("RGB", (SIDE, SIDE)), (1, 1, 1), (1, 1, 1)
    if scene.weather in LIGHT:
        shade = LIGHT[scene.weather].shade
        lay(canvas, plain, sky, rng, scene)
    lay(canvas, shade, ground, rng, scene)
    soft = tuple(0.5 + 0.5 * c for c in shade)
    for thing in sorted(scene.things, key=distance):
        lay(canvas, soft, draw_thing, rng, thing, font)
    if scene.weather == "rain":
        lay(canvas, plain, rain, rng)
    return canvas


def lay(canvas, shade, shapes, *args):
    """Draw `shapes(pen, *args)` onto the canvas, its RGB multiplied by `shade`."""
    from PIL import Image, ImageChops

    pen = Pen()
    shapes(pen, *args)
    layer = pen.image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    light = Image.new("RGB", layer.size, tuple(int(255 * c) for c in shade))
    canvas.paste(ImageChops.multiply(layer.convert("RGB"), light), (0, 0), layer.getchannel("A"))


def distance(thing):
    """Sort key from the farthest thing to the nearest: sky, people at work, then by the lower edge."""
    entry = LEXICON[thing.name]
    return entry.zone != "sky", entry.kind != "worker", thing.box[3]


def sky(pen, rng, scene):
    """Draw the sky down to the bottom of the image: gradient, sun or moon, stars, clouds."""
    light = LIGHT[scene.weather]
    for y in range(0, SIDE, 2):
        t = min(1, y / scene.horizon)
        color = tuple(round(a + (b - a) * t) for a, b in zip(light.top, light.bottom))
        pen.rect(0, y, SIDE, y + 2, color)
    x = rng.uniform(24, 232)
    if scene.weather == "night":
        for _ in range(rng.randint(20, 70)):
            pen.oval(rng.uniform(0, SIDE), rng.uniform(0, scene.horizon), 0.8, 0.8, (255, 255, 230))
        pen.oval(x, 30, 13, 13, (250, 244, 210))
        pen.oval(x + rng.uniform(-9, 9), 27, 11, 11, (14, 20, 58))
    elif scene.weather in ("clear", "sunset"):
        pen.oval(x, scene.horizon - 24 if scene.weather == "sunset" else 28, 15, 15, (255, 236, 150))
    few = rng.randint(0, 3)
    for _ in range(CLOUDS.get(scene.weather, few)):
        cloud(pen, rng, scene)


def cloud(pen, rng, scene):
    """Draw a cloud at a random place above the horizon."""
    x, y = rng.uniform(0, SIDE), rng.uniform(8, scene.horizon * 0.6)
    color = (255, 255, 255) if scene.weather == "clear" else near(rng, LIGHT[scene.weather].bottom, 8)
    for _ in range(4):
        at = x + rng.uniform(-20, 20), y + rng.uniform(-5, 5)
        pen.oval(*at, rng.uniform(10, 20), rng.uniform(5, 10), color)


def rain(pen, rng):
    """Draw raindrops over the whole image."""
    for _ in range(rng.randint(60, 140)):
        x, y = rng.uniform(0, SIDE), rng.uniform(0, SIDE)
        pen.line([(x, y), (x - 3, y + 10)], (225, 232, 240, 170), 0.7)


def draw_thing(pen, rng, thing, font):
    """Draw one thing into its box, with a shadow where it stands on land."""
    from PIL import Image

    box, entry = thing.box, LEXICON[thing.name]
    if thing.name == "person hanging":
        box = hanging_body(pen, rng, thing)
    elif entry.kind == "worker":
        box = working_body(pen, rng, thing)
    elif entry.zone == "land":
        wide = box[2] - box[0]
        pen.oval((box[0] + box[2]) / 2, box[3] - 1, 0.4 * wide, 0.05 * wide, (20, 20, 30, 70))
    image = glyph(font, thing)
    wide, tall = 2 * (box[2] - box[0]), 2 * (box[3] - box[1])
    scale = min(wide / image.width, tall / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    image = image.resize(size, Image.Resampling.LANCZOS)
    corner = round(2 * box[0] + (wide - size[0]) / 2), round(2 * box[1] + tall - size[1])
    pen.image.alpha_composite(image, corner)


def hanging_body(pen, rng, thing):
    """Draw a body that hangs by its hands from the top of the box. Returns the box of the face."""
    x0, y0, x1, y1 = thing.box
    x, wide, tall = (x0 + x1) / 2, x1 - x0, y1 - y0
    shirt = PAINT.get(thing.color, (60, 60, 66))
    for s in (-1, 1):
        hand = x + s * 0.34 * wide
        pen.line([(hand, y0), (x + s * 0.24 * wide, y0 + 0.44 * tall)], shirt, 0.09 * wide + 1)
        pen.oval(hand, y0 + 1, 2.4, 2.4, SKIN)
        foot = (x + s * rng.uniform(0.1, 0.34) * wide, y1 - 2)
        pen.line([(x + s * 0.1 * wide, y0 + 0.66 * tall), foot], (50, 60, 96), 0.13 * wide)
    pen.rect(x - 0.26 * wide, y0 + 0.4 * tall, x + 0.26 * wide, y0 + 0.72 * tall, shirt, 4)
    return x - 0.15 * tall, y0 + 0.12 * tall, x + 0.15 * tall, y0 + 0.42 * tall


def working_body(pen, rng, thing):
    """Draw a person behind a stove or a sink. Returns the box of the face."""
    x0, y0, x1, y1 = thing.box
    x, wide, tall = (x0 + x1) / 2, x1 - x0, y1 - y0
    shirt = PAINT.get(thing.color, (60, 60, 66))
    pen.rect(x - 0.3 * wide, y0 + 0.42 * tall, x + 0.3 * wide, y1 - 4, shirt, 12)
    hands = (stove if thing.name.endswith("a pan") else sink)(pen, rng, x, wide, y1)
    for s, hand in zip((-1, 1), hands):
        shoulder, elbow = (x + s * 0.25 * wide, y0 + 0.5 * tall), (x + s * 0.36 * wide, y0 + 0.7 * tall)
        pen.line([shoulder, elbow, hand], tuple(int(c * 0.86) for c in shirt), 8)
        pen.oval(*hand, 5, 5, SKIN)
    return x - 0.23 * tall, y0, x + 0.23 * tall, y0 + 0.46 * tall


def stove(pen, rng, x, wide, y1):
    """Draw a pan on a stove with a spoon in it. Returns where the two hands are."""
    pen.rect(x - 0.42 * wide, y1 - 10, x + 0.42 * wide, y1, (66, 66, 72), 3)
    pen.line([(x + 0.2 * wide, y1 - 15), (x + 0.5 * wide, y1 - 20)], (40, 40, 44), 4)
    pen.oval(x, y1 - 15, 0.26 * wide, 9, (44, 44, 48))
    pen.oval(x, y1 - 16, 0.22 * wide, 6, near(rng, (206, 130, 60), 40))
    pen.line([(x - 0.2 * wide, y1 - 44), (x + rng.uniform(-6, 10), y1 - 16)], (150, 104, 62), 3)
    return (x - 0.2 * wide, y1 - 42), (x + 0.4 * wide, y1 - 19)


def sink(pen, rng, x, wide, y1):
    """Draw a sink with a tap, a plate and foam. Returns where the two hands are."""
    pen.rect(x - 0.44 * wide, y1 - 20, x + 0.44 * wide, y1, (188, 194, 202), 6)
    pen.rect(x - 0.4 * wide, y1 - 18, x + 0.4 * wide, y1 - 5, (140, 190, 220), 5)
    pipe, spout = x + 0.48 * wide, x + 0.36 * wide
    pen.line([(pipe, y1 - 4), (pipe, y1 - 44), (spout, y1 - 44), (spout, y1 - 34)], (130, 136, 144), 4)
    pen.oval(x, y1 - 24, 0.17 * wide, 0.15 * wide, (250, 250, 252))
    pen.oval(x, y1 - 24, 0.11 * wide, 0.09 * wide, (222, 228, 236))
    for _ in range(16):
        at = x + rng.uniform(-0.38, 0.38) * wide, y1 - rng.uniform(6, 22)
        pen.oval(*at, 3.4, 3.4, near(rng, (236, 246, 252), 8))
    return (x - 0.17 * wide, y1 - 26), (x + 0.17 * wide, y1 - 24)


def glyph(font, thing):
    """The thing's emoji as a tight RGBA image: repainted, mirrored, turned."""
    from PIL import Image, ImageDraw, ImageOps

    image, entry = Image.new("RGBA", (160, 150)), LEXICON[thing.name]
    ImageDraw.Draw(image).text((4, 4), thing.glyph, font=font, embedded_color=True)
    image = image.crop(image.getbbox())
    if entry.tinted and entry.kind not in DRAWN_BODIES:
        image = repaint(image, thing.color)
    image = ImageOps.mirror(image) if thing.flip else image
    return image.rotate(thing.angle, Image.Resampling.BICUBIC, expand=True) if thing.angle else image


def repaint(image, color):
    """The RGBA image with its most frequent hue replaced by `color`, one of TINTS."""
    from PIL import Image

    alpha, black = image.getchannel("A"), Image.new("L", image.size)
    h, s, v = image.convert("RGB").convert("HSV").split()
    vivid = s.point([255 * (x > 36) for x in range(256)])
    counts = h.histogram(Image.composite(vivid, black, alpha))
    most = max(range(256), key=lambda i: sum(counts[(i + k) % 256] for k in range(-6, 7)))
    close = h.point([255 * (min((x - most) % 256, (most - x) % 256) < 22) for x in range(256)])
    hue, strength, light = TINTS[color]
    saturation = s.point([int(max(x, 190) * strength) for x in range(256)])
    value = v.point([min(255, int(x * light)) for x in range(256)])
    new = Image.merge("HSV", (h.point([hue] * 256), saturation, value)).convert("RGB")
    out = Image.composite(new, image.convert("RGB"), Image.composite(close, black, vivid))
    out.putalpha(alpha)
    return out
