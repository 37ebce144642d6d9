"""Everything of a setting but the sky and the things: one function per setting, listed in GROUNDS.

Every function takes (pen, rng, scene, h, colors), where `h` is the horizon in pixels from the top.
"""

from typing import NamedTuple

from .layout import SIDE, cable
from .pen import hills, near, tree, waves
from .vocabulary import PAINT


class Colors(NamedTuple):
    """The colours of one image, RGB."""

    paint: tuple
    grass: tuple
    water: tuple
    sand: tuple


def ground(pen, rng, scene):
    """Draw the setting of a scene."""
    colors = Colors(
        near(rng, PAINT[scene.paint]),
        near(rng, (112, 170, 82), 26),
        near(rng, (52, 128, 178), 24),
        near(rng, (232, 208, 158)),
    )
    GROUNDS[scene.setting](pen, rng, scene, scene.horizon, colors)


def any_paint(rng, spread):
    """A colour near one of PAINT."""
    return near(rng, rng.choice(list(PAINT.values())), spread)


def darker(color, by):
    """An RGB colour with each channel lowered by `by`."""
    return tuple(max(0, c - by) for c in color)


def scaled(color, factor):
    """An RGB colour with each channel multiplied by `factor`, at most 1."""
    return tuple(int(c * factor) for c in color)


def beach(pen, rng, scene, h, colors):
    waves(pen, rng, h, SIDE, colors.water)
    tilt, shore = rng.uniform(-12, 12), h + 0.48 * (SIDE - h)
    for drop, color in ((-5, (250, 250, 250)), (0, colors.sand)):
        edge = [(0, shore + drop + tilt), (128, shore + drop + 4), (SIDE, shore + drop - tilt)]
        pen.poly([*edge, (SIDE, SIDE), (0, SIDE)], color)
    for _ in range(rng.randint(10, 60)):
        x, y = rng.uniform(0, SIDE), rng.uniform(shore + 14, SIDE)
        pen.oval(x, y, 1, 0.7, near(rng, (190, 164, 120), 20))


def sea(pen, rng, scene, h, colors):
    waves(pen, rng, h, SIDE, colors.water)
    if rng.random() < 0.5:  # an island
        x = rng.uniform(20, 236)
        pen.poly([(x - 40, h), (x - 12, h - 16), (x + 8, h - 8), (x + 44, h)], near(rng, (96, 120, 110)))


def street(pen, rng, scene, h, colors):
    x = -10
    while x < SIDE:
        wide = rng.uniform(28, 60)
        house(pen, rng, scene, x, wide, rng.uniform(18, h - 50))
        x += wide + rng.choice((0, 0, 6))
    pen.rect(0, h, SIDE, h + 22, near(rng, (188, 186, 180)))
    pen.rect(0, h + 22, SIDE, SIDE, near(rng, (92, 94, 100)))
    for x in range(rng.randint(-30, 0), SIDE, 52):
        pen.rect(x, h + 52, x + 28, h + 56, (236, 236, 226))


def house(pen, rng, scene, x, wide, top):
    """A house front with windows."""
    h = scene.horizon
    pen.rect(x, top, x + wide, h, any_paint(rng, 30))
    lit = (255, 226, 130) if scene.weather == "night" else near(rng, (70, 90, 116))
    for y in range(int(top) + 8, h - 14, 16):
        for left in range(int(x) + 6, int(x + wide) - 8, 13):
            pen.rect(left, y, left + 7, y + 9, lit if rng.random() < 0.8 else near(rng, (60, 62, 72)))


def road(pen, rng, scene, h, colors):
    hills(pen, rng, h + 4, 30, near(rng, (92, 140, 92)))
    pen.rect(0, h, SIDE, SIDE, colors.grass)
    x, wide = rng.uniform(80, 176), rng.uniform(90, 140)
    pen.poly([(x - 5, h), (x + 5, h), (128 + wide, SIDE), (128 - wide, SIDE)], near(rng, (100, 100, 106)))
    for i in range(5):  # the middle line, wider and longer towards the viewer
        ends = (i / 5) ** 1.6, ((i + 0.5) / 5) ** 1.6
        points = [(x + (128 - x) * t, h + (SIDE - h) * t) for t in ends]
        pen.line(points, (244, 236, 200), 1 + 3 * ends[1])
    for _ in range(rng.randint(0, 6)):
        x = rng.choice((rng.uniform(0, 70), rng.uniform(190, SIDE)))
        tree(pen, rng, x, h + rng.uniform(2, 14), rng.uniform(24, 50))


def forest(pen, rng, scene, h, colors):
    hills(pen, rng, h + 6, 40, near(rng, (88, 134, 96)))
    for x in range(-10, SIDE + 10, rng.randint(14, 22)):
        tree(pen, rng, x + rng.uniform(-6, 6), h + rng.uniform(0, 8), rng.uniform(90, 150))
    pen.rect(0, h, SIDE, SIDE, near(rng, (86, 122, 66), 20))
    trees(pen, rng, scene)
    flowers(pen, rng, h, colors)


def park(pen, rng, scene, h, colors):
    pen.rect(0, h, SIDE, SIDE, colors.grass)
    path = [(rng.uniform(20, 230), h), (rng.uniform(150, 240), SIDE), (rng.uniform(20, 110), SIDE)]
    pen.poly(path, near(rng, (222, 206, 170)))
    trees(pen, rng, scene)
    flowers(pen, rng, h, colors)


def field(pen, rng, scene, h, colors):
    hills(pen, rng, h + 6, 40, near(rng, (88, 134, 96)))
    pen.rect(0, h, SIDE, SIDE, colors.grass)
    trees(pen, rng, scene)
    flowers(pen, rng, h, colors)
    if rng.random() < 0.5:  # a fence
        for y in (h + 12, h + 20):
            pen.line([(0, y), (SIDE, y)], (150, 116, 78), 2)
        for x in range(8, SIDE, 24):
            pen.rect(x, h + 6, x + 3, h + 28, (150, 116, 78))


def trees(pen, rng, scene):
    """Trees along the horizon. Every setting takes both random numbers: the archive was drawn so."""
    counts = dict(forest=4, park=rng.randint(4, 9), field=rng.randint(0, 2))
    for _ in range(counts[scene.setting]):
        tree(pen, rng, rng.uniform(0, SIDE), scene.horizon + rng.uniform(2, 12), rng.uniform(40, 80))


def flowers(pen, rng, h, colors):
    """Dots in the grass."""
    for _ in range(rng.randint(10, 70)):
        color = near(rng, rng.choice(((250, 240, 120), (240, 240, 240), colors.grass)), 20)
        pen.oval(rng.uniform(0, SIDE), rng.uniform(h + 14, SIDE), 1.4, 1.2, color)


def mountain(pen, rng, scene, h, colors):
    for y, tall, color in ((h - 20, 110, (132, 146, 172)), (h, 80, (106, 120, 146))):
        for _ in range(4):
            x, top = rng.uniform(0, SIDE), y - rng.uniform(0.4, 0.8) * tall
            pen.poly([(x - 80, h + 4), (x, top), (x + 80, h + 4)], near(rng, color))
            snow = top + 22 * (h + 4 - top) / 80
            pen.poly([(x - 22, snow), (x, top), (x + 22, snow), (x + 5, top + 16)], (248, 250, 255))
    hills(pen, rng, h + 8, 14, near(rng, (236, 242, 250), 8))
    slope = [(0, h + 50), (SIDE, h + rng.uniform(20, 90)), (SIDE, SIDE), (0, SIDE)]
    pen.poly(slope, near(rng, (222, 232, 246), 6))


def desert(pen, rng, scene, h, colors):
    for i in range(4):
        color = near(rng, (226 - 8 * i, 176 - 10 * i, 108 - 8 * i), 10)
        hills(pen, rng, h + 14 + i * 24, 26, color, rng.randint(2, 5))


def bridge(pen, rng, scene, h, colors):
    line, deck = cable(scene), h + 9
    steel = near(rng, rng.choice(((186, 70, 52), (110, 116, 128), (70, 92, 120), (150, 140, 120))))
    hills(pen, rng, h, 36, near(rng, (96, 132, 104)))
    waves(pen, rng, h - 4, SIDE, colors.water)
    for x, edge in ((line.left, -20), (line.right, SIDE + 20)):
        pen.rect(x - 5, line.top, x + 5, SIDE - 14, steel, 2)
        pen.line([(x, line.top), (edge, deck)], steel, 2.5)
    for x in range(line.left + 10, line.right - 4, rng.choice((10, 12, 14))):
        pen.line([(x, line.height(x)), (x, deck)], steel, 0.8)
    pen.line([(x, line.height(x)) for x in range(line.left, line.right + 1, 3)], steel, 3)
    pen.rect(0, deck, SIDE, deck + 9, near(rng, (116, 112, 112)))
    pen.line([(0, deck), (SIDE, deck)], steel, 2)


def river(pen, rng, scene, h, colors):
    hills(pen, rng, h, 26, near(rng, (100, 142, 98)))
    pen.rect(0, h, SIDE, SIDE, colors.grass)
    waves(pen, rng, h + 22, h + 0.78 * (SIDE - h), colors.water)
    stone, arches = near(rng, (168, 158, 146), 20), rng.randint(2, 4)
    pen.rect(0, h - 2, SIDE, h + 12, stone)
    for i in range(arches + 1):
        x = SIDE * i / arches
        pen.rect(x - 8, h + 10, x + 8, h + 40, stone)
    for _ in range(6):
        x, y, wide = rng.uniform(0, SIDE), SIDE - rng.uniform(2, 40), rng.uniform(3, 8)
        pen.oval(x, y, wide, 3, near(rng, (80, 140, 70)))


def playground(pen, rng, scene, h, colors):
    pen.rect(0, h, SIDE, SIDE, near(rng, (226, 200, 150)) if rng.random() < 0.6 else colors.grass)
    pen.rect(0, h - 6, SIDE, h + 6, near(rng, (96, 150, 84)))
    x, frame = rng.uniform(20, 150), near(rng, PAINT[scene.paint])
    pen.line([(x - 8, h + 30), (x + 6, h - 50), (x + 74, h - 50), (x + 88, h + 30)], frame, 4)
    for s in (x + 24, x + 54):
        pen.line([(s, h - 50), (s, h + 10)], (90, 90, 96), 1)
        pen.line([(s + 12, h - 50), (s + 12, h + 10)], (90, 90, 96), 1)
        pen.rect(s - 2, h + 8, s + 14, h + 12, near(rng, (180, 70, 60), 40))
    pen.oval(rng.uniform(40, 220), 240, 70, 14, near(rng, (240, 222, 176)))


def stage(pen, rng, scene, h, colors):
    pen.rect(0, 0, SIDE, h, near(rng, (46, 40, 58)))
    for x in range(0, SIDE, 16):  # the folds of the curtain
        pen.rect(x, 0, x + 9, h, scaled(colors.paint, 0.8))
        pen.rect(x + 9, 0, x + 16, h, scaled(colors.paint, 0.6))
    pen.rect(0, h, SIDE, SIDE, near(rng, (150, 104, 66), 20))
    for _ in range(rng.randint(1, 3)):
        pen.oval(rng.uniform(40, 216), rng.uniform(h + 20, SIDE - 16), 46, 12, near(rng, (214, 176, 116)))


def room(pen, rng, scene, h, colors):
    pen.rect(0, 0, SIDE, h, colors.paint)
    pen.rect(0, h, SIDE, SIDE, near(rng, (176, 128, 84), 26))
    pen.rect(0, h - 6, SIDE, h, (240, 236, 228))
    for y in range(h + 12, SIDE, 18):
        pen.line([(0, y), (SIDE, y)], near(rng, (140, 98, 62), 6), 1)
    x, y, wide = rng.uniform(10, 150), rng.uniform(18, 40), rng.uniform(50, 90)
    pen.rect(x, y, x + wide, y + 62, (246, 244, 240))
    pen.rect(x + 4, y + 4, x + wide - 4, y + 58, near(rng, (166, 210, 244), 20))
    pen.line([(x + wide / 2, y), (x + wide / 2, y + 62)], (246, 244, 240), 3)
    left = (x + 140) % 210  # a picture on the wall
    pen.rect(left, y + 6, left + 34, y + 34, any_paint(rng, 14))
    carpet, wide = rng.uniform(70, 190), rng.uniform(60, 110)
    pen.oval(carpet, SIDE - 26, wide, 22, any_paint(rng, 20))


def table(pen, rng, scene, h, colors):
    pen.rect(0, 0, SIDE, h, any_paint(rng, 24))
    wood = near(rng, (178, 124, 76), 34)
    pen.rect(0, h, SIDE, SIDE, wood)
    for i in range(1, 7):
        y = h + (SIDE - h) * (i / 7) ** 1.4
        pen.line([(0, y), (SIDE, y)], darker(wood, 24), 1)
    if rng.random() < 0.4:  # a cloth
        x, y, wide = rng.uniform(80, 176), rng.uniform(190, 220), rng.uniform(60, 90)
        pen.oval(x, y, wide, 34, any_paint(rng, 20))


def kitchen(pen, rng, scene, h, colors):
    pen.rect(0, 0, SIDE, h, colors.paint)
    step, joint = rng.choice((14, 18, 24)), darker(colors.paint, 22)
    for x in range(0, SIDE + step, step):
        pen.line([(x, 60), (x, h)], joint, 1)
    for y in range(60, h, step):
        pen.line([(0, y), (SIDE, y)], joint, 1)
    pen.rect(0, h + 50, SIDE, SIDE, near(rng, (120, 104, 90)))
    cupboard = near(rng, rng.choice(((206, 170, 120), (236, 232, 224), (130, 150, 160))), 20)
    for x in range(-20, SIDE, 58):
        if rng.random() < 0.8:
            pen.rect(x, 0, x + 54, 46, cupboard, 3)
            pen.oval(x + 46, 38, 2, 2, (90, 90, 90))
        pen.rect(x, h + 58, x + 54, SIDE, cupboard, 3)
    pen.rect(0, h, SIDE, h + 54, near(rng, (214, 208, 200), 16))
    pen.rect(0, h + 48, SIDE, h + 56, near(rng, (150, 140, 130)))


GROUNDS = dict(
    beach=beach,
    sea=sea,
    street=street,
    road=road,
    forest=forest,
    mountain=mountain,
    field=field,
    park=park,
    desert=desert,
    bridge=bridge,
    river=river,
    playground=playground,
    stage=stage,
    room=room,
    table=table,
    kitchen=kitchen,
)
