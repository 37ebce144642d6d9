"""Shapes to draw with, all in pixels of the image."""

from random import Random

from .layout import SIDE


class Pen:
    """Shapes on a transparent canvas of twice the resolution. Scaling it down makes the edges smooth."""

    def __init__(self):
        from PIL import Image, ImageDraw

        self.image = Image.new("RGBA", (2 * SIDE, 2 * SIDE))
        self.ink = ImageDraw.Draw(self.image)

    def rect(self, x0, y0, x1, y1, fill, r=0):
        """A rectangle with corners of radius `r`."""
        self.ink.rounded_rectangle([2 * x0, 2 * y0, 2 * max(x0, x1), 2 * max(y0, y1)], 2 * r, fill)

    def oval(self, x, y, rx, ry, fill):
        """An ellipse around (x, y)."""
        self.ink.ellipse([2 * (x - rx), 2 * (y - ry), 2 * (x + rx), 2 * (y + ry)], fill)

    def poly(self, points, fill):
        """A filled polygon."""
        self.ink.polygon([(2 * x, 2 * y) for x, y in points], fill)

    def line(self, points, fill, width=1.0):
        """A line through all points."""
        self.ink.line([(2 * x, 2 * y) for x, y in points], fill, round(2 * width), joint="curve")


def near(rng: Random, color, spread=14):
    """A colour close to this one, so that no two beaches have the same sand."""
    return tuple(max(0, min(255, c + rng.randint(-spread, spread))) for c in color)


def hills(pen, rng, y, height, color, steps=7):
    """A skyline from edge to edge, filled down to the bottom."""
    xs = [SIDE * i / steps for i in range(steps + 1)]
    pen.poly([(0, SIDE), *((x, y - rng.uniform(0, height)) for x in xs), (SIDE, SIDE)], color)


def tree(pen, rng, x, y, tall):
    """A fir or a leafy tree with the foot of its trunk at (x, y)."""
    green, trunk = near(rng, (58, 120, 62), 24), near(rng, (110, 78, 50))
    pen.rect(x - tall * 0.06, y - tall * 0.4, x + tall * 0.06, y, trunk)
    for i in range(3):
        if rng.random() < 0.5:
            half, low = tall * (0.3 - 0.06 * i), y - tall * (0.2 + 0.22 * i)
            pen.poly([(x - half, low), (x, y - tall * (0.55 + 0.22 * i)), (x + half, low)], green)
        else:
            middle = x + rng.uniform(-0.1, 0.1) * tall
            pen.oval(middle, y - tall * (0.5 + 0.14 * i), tall * 0.26, tall * 0.22, green)


def waves(pen, rng, y0, y1, color):
    """Water from y0 to y1 with short light strokes."""
    pen.rect(0, y0, SIDE, y1, color)
    for _ in range(int((y1 - y0) / 3)):
        x, y = rng.uniform(0, SIDE), rng.uniform(y0 + 2, y1 - 2)
        pen.line([(x, y), (x + rng.uniform(6, 22), y)], tuple(min(255, c + 26) for c in color), 1)
