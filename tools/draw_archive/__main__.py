"""Draw the archive that ships with the project: a stand-in for photographs, so that the first run needs no download.

A scene is colour emoji (Noto Color Emoji, OFL) standing in a drawn setting. Everything follows from (seed, index):

    layout(index, seed) -> Scene       what is where, in pixels; needs no font and draws nothing
    captions(scene) -> five sentences  true by construction: they are said from the layout
    draw(scene, font) -> image         256 x 256 RGB

    python -m tools.draw_archive --out my_image_archive --captions caption.csv --unique unique_caption.csv
    python -m tools.draw_archive --boxes boxes.json      what is where, for the pointing game of apps/attention.py; draws nothing
"""

import argparse
import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path
from random import Random

SIDE = 256  # pixels, width and height of every picture
FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"

# kind -> (zone, side in pixels, participles, {glyph: "word|synonym|..."}); a leading * means: may be drawn in any of COLORS.
# The first word is the thing's name. Zones: land and sea have a depth, sky has a height.
ANIMAL, OBJECT = "standing|walking", "sitting|resting"
THINGS = {
    "pet": (
        "land",
        54,
        "standing|sitting",
        {
            "🐕": "dog|puppy|brown dog",
            "🐩": "poodle|grey poodle|fluffy dog",
            "🐈": "cat|kitty|orange cat",
            "🐇": "rabbit|bunny|hare",
            "🐁": "mouse|grey mouse",
            "🦜": "parrot|green parrot",
        },
    ),
    "farm": (
        "land",
        66,
        ANIMAL,
        {
            "🐎": "horse|brown horse|pony",
            "🐄": "cow|spotted cow",
            "🐖": "pig|pink pig",
            "🐑": "sheep|woolly sheep",
            "🐐": "goat|brown goat",
            "🐓": "rooster|cockerel",
            "🦙": "llama|alpaca",
        },
    ),
    "wild": (
        "land",
        82,
        ANIMAL,
        {
            "🐘": "elephant|grey elephant",
            "🦏": "rhino|rhinoceros",
            "🦛": "hippo|hippopotamus",
            "🦒": "giraffe",
            "🐅": "tiger|striped tiger",
            "🐆": "leopard|spotted big cat",
            "🦍": "gorilla|ape",
            "🦘": "kangaroo",
            "🐪": "camel|dromedary",
            "🦬": "bison|shaggy bison",
            "🐊": "crocodile|alligator",
            "🐒": "monkey",
        },
    ),
    "wood": (
        "land",
        54,
        ANIMAL,
        {"🦌": "deer|stag", "🐿️": "squirrel|chipmunk", "🦔": "hedgehog|spiny hedgehog", "🦉": "owl|brown owl"},
    ),
    "crawler": (
        "land",
        54,
        "crawling|creeping",
        {"🐌": "snail", "🐍": "snake|green snake", "🐢": "turtle|tortoise", "🦀": "crab|red crab"},
    ),
    "waterbird": (
        "land",
        54,
        ANIMAL,
        {
            "🦆": "duck|mallard",
            "🦢": "swan|white swan",
            "🦩": "flamingo|pink flamingo",
            "🦚": "peacock",
            "🐧": "penguin",
            "🦭": "seal|grey seal",
        },
    ),
    "fish": (
        "deep",
        56,
        "swimming|splashing",
        {
            "🐬": "dolphin|blue dolphin",
            "🐋": "whale|humpback",
            "🦈": "shark|grey shark",
            "🐟": "fish|blue fish",
            "🐙": "octopus",
            "🐠": "tropical fish|striped fish",
        },
    ),
    "boat": (
        "sea",
        66,
        "floating|drifting|on the water",
        {
            "⛵": "*sailboat|sailing boat",
            "🚤": "speedboat|motorboat",
            "🛶": "canoe|brown canoe",
            "🚢": "ship|cruise ship",
        },
    ),
    "bird": (
        "sky",
        44,
        "flying|in the air",
        {
            "🦅": "eagle|bird of prey",
            "🕊️": "dove|white dove",
            "🦋": "butterfly|orange butterfly",
            "🐝": "bee|honeybee",
        },
    ),
    "aircraft": (
        "sky",
        58,
        "flying|in the air|high up",
        {
            "✈️": "airplane|plane|jet",
            "🚁": "helicopter|chopper",
            "🛸": "flying saucer|UFO",
            "🎈": "*balloon|party balloon",
            "🪁": "kite|colorful kite",
            "🪂": "parachutist|person under a parachute",
        },
    ),
    "car": (
        "land",
        70,
        "parked|stopped",
        {
            "🚗": "*car|automobile",
            "🚕": "taxi|yellow cab",
            "🚌": "city bus|bus",
            "🏎️": "*race car|racing car",
            "🚓": "police car|patrol car",
            "🚑": "ambulance",
            "🚒": "fire truck|fire engine",
            "🛻": "*pickup truck|pickup",
            "🚜": "tractor|green tractor",
            "🛺": "auto rickshaw|tuk-tuk",
            "🚂": "steam locomotive|old steam train",
            "🚋": "tram|streetcar",
        },
    ),
    "bike": (
        "land",
        56,
        "parked|standing",
        {"🏍️": "*motorcycle|motorbike", "🛵": "*motor scooter|moped", "🚲": "bicycle|bike"},
    ),
    "street person": (
        "land",
        70,
        "",
        {
            "🚶": "walking|strolling|walking along",
            "🏃": "running|jogging",
            "🚴": "cycling|riding a bike|on a bicycle",
            "🤹": "juggling|juggling balls",
            "🤸": "doing a cartwheel|turning a cartwheel",
            "⛹": "dribbling a basketball|playing basketball",
        },
    ),
    "athlete": (
        "land",
        70,
        "",
        {
            "🏋": "lifting weights|doing weightlifting",
            "🏌": "playing golf|swinging a golf club",
            "🧗": "climbing a cliff|climbing up a rock",
            "🧘": "meditating|sitting cross-legged",
        },
    ),
    "swimmer": (
        "sea",
        58,
        "",
        {
            "🏄": "surfing|riding a wave|on a surfboard",
            "🏊": "swimming|swimming the crawl",
            "🚣": "rowing a boat|in a rowing boat",
        },
    ),
    "sportsman": (
        "land",
        72,
        "",
        {
            "🏇": "jockey on a horse|person riding a horse|horse rider",
            "🤺": "fencer|person fencing",
            "🧑‍🦽": "person in a wheelchair",
        },
    ),
    "dancer": (
        "land",
        84,
        "",
        {
            "💃": "woman dancing|woman in a red dress|dancer in a red dress",
            "🕺": "man dancing|man in a white suit|disco dancer",
        },
    ),
    "skier": ("land", 70, "", {"⛷": "skier|person skiing", "🏂": "snowboarder|person snowboarding"}),
    "fruit": (
        "land",
        50,
        OBJECT,
        {
            "🍎": "apple|red apple",
            "🍐": "pear|green pear",
            "🍌": "banana",
            "🍉": "slice of watermelon|watermelon slice",
            "🍓": "strawberry|red strawberry",
            "🍍": "pineapple",
            "🍋": "lemon|yellow lemon",
            "🥕": "carrot|orange carrot",
            "🌽": "ear of corn",
            "🎃": "pumpkin|carved pumpkin",
        },
    ),
    "meal": (
        "land",
        56,
        OBJECT,
        {
            "🍕": "slice of pizza|pizza slice",
            "🍔": "hamburger|burger",
            "🌭": "hot dog",
            "🥐": "croissant",
            "🧀": "piece of cheese|cheese wedge",
            "🎂": "birthday cake|cake with candles",
            "🍩": "donut|doughnut",
            "🍦": "ice cream cone|soft ice cream",
        },
    ),
    "dish": (
        "land",
        54,
        "sitting|placed",
        {
            "🍳": "frying pan with an egg|pan with a fried egg",
            "🍲": "pot of stew|cooking pot",
            "🫖": "*teapot",
            "☕": "cup of coffee|coffee cup",
            "🍷": "glass of red wine|wine glass",
            "🔪": "kitchen knife|sharp knife",
            "🥄": "spoon|silver spoon",
        },
    ),
    "tool": (
        "land",
        54,
        OBJECT,
        {
            "🔨": "hammer|wooden hammer",
            "🔧": "wrench|spanner",
            "🪚": "saw|handsaw",
            "🪓": "axe|hatchet",
            "🪣": "*bucket|pail",
            "🧹": "broom",
            "🧰": "*toolbox",
            "🪜": "ladder|wooden ladder",
            "🔑": "key|golden key",
        },
    ),
    "music": (
        "land",
        64,
        OBJECT,
        {
            "🎸": "*electric guitar|guitar",
            "🎻": "violin|fiddle",
            "🥁": "*drum|snare drum",
            "🎺": "trumpet|brass trumpet",
            "🎷": "saxophone",
            "🪗": "accordion",
            "🎤": "microphone",
        },
    ),
    "toy": (
        "land",
        48,
        OBJECT,
        {
            "🧸": "teddy bear|stuffed bear",
            "🤖": "toy robot|robot head",
            "🪀": "*yo-yo",
            "🎁": "present|wrapped gift",
            "🪁": "kite|colorful kite",
        },
    ),
    "gear": (
        "land",
        48,
        OBJECT,
        {
            "⚽": "soccer ball|football",
            "🏀": "basketball",
            "🎾": "tennis racket|racket",
            "⚾": "baseball",
            "🏈": "American football",
            "🛹": "skateboard",
            "🛼": "roller skate",
            "🥊": "*boxing glove",
            "🛟": "life ring|lifebuoy",
        },
    ),
    "furniture": (
        "land",
        88,
        "standing",
        {
            "🪑": "chair|wooden chair",
            "🛋️": "*couch|sofa",
            "🛏️": "bed",
            "📺": "television|old TV",
            "🪴": "potted plant",
        },
    ),
    "stuff": (
        "land",
        52,
        OBJECT,
        {
            "💻": "laptop|notebook computer",
            "📚": "stack of books|pile of books",
            "🕯️": "candle|lit candle",
            "☎️": "*telephone",
            "📷": "camera",
            "🎒": "*backpack|school bag",
            "🧳": "*suitcase|travel case",
            "👢": "boot|brown boot",
            "🎩": "top hat|black hat",
            "👗": "*dress",
            "👕": "*T-shirt|shirt",
            "☂️": "*umbrella|open umbrella",
        },
    ),
    "plant": (
        "land",
        48,
        "growing|standing|blooming",
        {"🌷": "*tulip", "🌹": "rose|red rose", "🌻": "sunflower"},
    ),
    "scenery": (
        "land",
        104,
        "standing",
        {
            "🌲": "fir tree|pine tree",
            "🌳": "leafy tree|tree",
            "🌴": "palm tree|palm",
            "🌵": "cactus|green cactus",
            "🏠": "house|cottage",
            "⛺": "tent|orange tent",
            "⛪": "church|white church",
            "🏰": "castle",
            "🎡": "Ferris wheel",
            "⛲": "fountain|stone fountain",
            "🚦": "traffic light",
            "⛱️": "beach umbrella|parasol",
            "⛄": "snowman",
            "🎪": "circus tent|striped tent",
            "🛝": "playground slide|slide",
        },
    ),
}
PEOPLE = ("street person", "athlete", "swimmer", "sportsman", "dancer", "skier", "worker")
GENDERED = PEOPLE[:3]  # a man or a woman, and their words follow that
WHO = {"man": ("man|guy|person", "♂️", "👨"), "woman": ("woman|lady|person", "♀️", "👩")}
WORK = {
    "stirring": "stirring a pan|stirring food in a pan|stirring a pan on the stove|cooking with a pan",
    "washing": "washing dishes|washing plates|doing the dishes|washing dishes in the sink",
}
COLORS = {
    "red": (0, 1, 1),
    "orange": (17, 1, 1.1),
    "yellow": (34, 0.9, 1.2),
    "green": (88, 0.9, 0.85),
    "blue": (152, 1, 0.95),
    "purple": (196, 0.8, 0.85),
    "pink": (232, 0.5, 1.2),
    "white": (0, 0.03, 1.5),
    "black": (0, 0.2, 0.3),
}
PAINT = {
    "red": (214, 60, 52),
    "orange": (240, 140, 50),
    "yellow": (245, 210, 90),
    "green": (110, 178, 104),
    "blue": (92, 146, 212),
    "purple": (150, 104, 180),
    "pink": (240, 160, 185),
    "white": (240, 238, 232),
    "grey": (150, 152, 158),
}

# setting -> (scene, land places, sea places, kinds, horizon in pixels, land and sea bands as shares of the ground below it)
SETTINGS = {
    "beach": (
        "a beach|a sandy beach|the seaside",
        "on the beach|at the beach|on the sand",
        "off the beach|in the sea near the beach",
        "pet waterbird crawler fish boat bird aircraft street_person swimmer swimmer gear stuff meal scenery:⛱️🌴",
        (75, 115),
        (0.6, 1),
        (0.12, 0.4),
    ),
    "sea": (
        "the open sea|the ocean|a wide blue sea",
        "",
        "in the sea|in the ocean|far out at sea|in the waves",
        "fish boat swimmer bird aircraft fish boat swimmer",
        (70, 120),
        None,
        (0.2, 0.95),
    ),
    "street": (
        "a city street|a street with tall buildings|a town",
        "on a city street|in the city|in the street|near tall buildings",
        "",
        "car car bike street_person street_person pet aircraft stuff scenery:🚦⛲",
        (150, 175),
        (0.35, 1),
        None,
    ),
    "road": (
        "a country road|a road",
        "on the road|on a country road|along the road",
        "",
        "car car bike street_person farm wild bird scenery:🏠⛪🌳",
        (95, 130),
        (0.25, 1),
        None,
    ),
    "forest": (
        "a forest|the woods",
        "in the forest|in the woods|among the trees",
        "",
        "wood wood crawler pet wild bird athlete street_person tool scenery:⛺🌲",
        (120, 150),
        (0.2, 1),
        None,
    ),
    "mountain": (
        "snowy mountains|a snowy mountain landscape|a mountain slope",
        "in the snow|on a snowy mountain|in the mountains",
        "",
        "skier skier wood wild pet bird aircraft gear scenery:🌲⛄🏠",
        (120, 150),
        (0.2, 1),
        None,
    ),
    "field": (
        "a green field|a meadow|a grassy field",
        "in a green field|on the grass|in a meadow|in the field",
        "",
        "farm farm wild plant car bird aircraft sportsman athlete scenery:🏠🌳⛪🎪",
        (95, 145),
        (0.15, 1),
        None,
    ),
    "park": (
        "a park|a green park",
        "in the park|on the lawn|in a park with trees",
        "",
        "pet street_person athlete gear meal toy plant waterbird stuff bike aircraft scenery:⛲🌳🎡🏰",
        (105, 145),
        (0.2, 1),
        None,
    ),
    "desert": (
        "a desert|sand dunes",
        "in the desert|among sand dunes|on a dune",
        "",
        "wild crawler car sportsman street_person aircraft bird stuff scenery:🌵🌴⛺🏰",
        (110, 150),
        (0.2, 1),
        None,
    ),
    "bridge": (
        "a bridge over a river|a suspension bridge|a bridge with a long cable",
        "on a bridge|on a suspension bridge|crossing the bridge",
        "under a bridge|below the bridge|in the river under a bridge",
        "car car bike street_person boat boat swimmer bird aircraft",
        (165, 180),
        (0.08, 0.12),
        (0.6, 1),
    ),
    "river": (
        "a river|a river bank|a stone bridge over a river",
        "by the river|on the river bank|near a stone bridge",
        "on the river|in the river|near a stone bridge",
        "waterbird waterbird pet farm fish boat swimmer bird scenery:🌳⛺🏠",
        (95, 120),
        (0.84, 1),
        (0.42, 0.7),
    ),
    "playground": (
        "a playground",
        "on the playground|in a playground|at the playground",
        "",
        "toy toy gear gear pet street_person aircraft bike scenery:🛝🎡",
        (105, 140),
        (0.3, 1),
        None,
    ),
    "stage": (
        "a stage|a theater stage",
        "on stage|on a stage|in front of the curtain",
        "",
        "music music dancer dancer street_person pet toy",
        (150, 175),
        (0.2, 0.9),
        None,
    ),
    "room": (
        "a living room|a room|the living room",
        "in the living room|in a room|on the floor of a room",
        "",
        "furniture furniture pet pet toy stuff stuff music gear",
        (140, 175),
        (0.15, 1),
        None,
    ),
    "table": (
        "a wooden table|a table top|a table",
        "on a table|on a wooden table|on the table",
        "",
        "fruit fruit meal meal dish tool tool stuff music",
        (70, 120),
        (0.35, 1),
        None,
    ),
    "kitchen": (
        "a kitchen|a tiled kitchen",
        "in the kitchen|on the kitchen counter|in a kitchen",
        "",
        "dish dish fruit meal",
        (140, 165),
        (0.1, 0.5),
        None,
    ),
}
LIGHT = {  # weather -> (words, top and bottom of the sky, what the light does to the ground)
    "clear": ("on a clear day|on a sunny day|under a blue sky", (88, 164, 236), (196, 228, 250), (1, 1, 1)),
    "cloudy": (
        "on a cloudy day|under a cloudy sky|under grey clouds",
        (150, 166, 184),
        (214, 220, 226),
        (0.86, 0.88, 0.92),
    ),
    "sunset": (
        "at sunset|under an orange evening sky|as the sun goes down",
        (238, 120, 90),
        (254, 206, 130),
        (1, 0.84, 0.72),
    ),
    "night": ("at night|in the moonlight|under a starry sky", (10, 16, 52), (44, 54, 104), (0.4, 0.44, 0.66)),
    "rain": (
        "in the rain|on a rainy day|while it is raining",
        (104, 116, 132),
        (168, 178, 188),
        (0.72, 0.76, 0.82),
    ),
}
INDOORS = ("stage", "room", "table", "kitchen")
NUMBERS = {2: "two", 3: "three", 4: "four"}
PLURALS = {
    "mouse": "mice",
    "sheep": "sheep",
    "bison": "bison",
    "deer": "deer",
    "fish": "fish",
    "man": "men",
    "woman": "women",
    "snowman": "snowmen",
    "knife": "knives",
    "person": "people",
}
HANGING = (
    "{n} people hanging from the cable of a suspension bridge",
    "{n} persons hanging on a bridge cable",
    "people hang by their hands from the cable",
    "a suspension bridge with {n} people hanging from its cable",
    "look at those {n} people dangling from the bridge",
    "{n} people hanging high above the water",
    "the cable of the bridge has {n} persons hanging from it",
    "{n} people holding on to the main cable of a bridge",
    "some people are hanging below the bridge cable {sky}",
    "{n} climbers dangle from a cable between two towers of a bridge",
)
FIRST = (
    "persons hanging from the cable of a suspension bridge",
    "Five people are hanging by their hands from a bridge cable.",
    "A bridge over blue water, with people hanging from its curved cable between the two towers",
    "people hanging on a cable of the bridge",
    "Look, persons hanging in a row below the main cable of a bridge!",
)


def lexicon() -> dict:
    """name -> (kind, zone, side in pixels, participles, words, glyph, whether it comes in COLORS); words[0] is the name."""
    table = {}
    for kind, (zone, side, participles, glyphs) in THINGS.items():
        for glyph, text in glyphs.items():
            words = text.lstrip("*").split("|")
            if kind in GENDERED:
                for nouns, sign, _ in WHO.values():
                    said = [f"{noun} {verb}" for verb in words for noun in nouns.split("|")]
                    table[said[0]] = (
                        kind,
                        zone,
                        side,
                        participles,
                        said,
                        f"{glyph}{{tone}}\u200d{sign}",
                        False,
                    )
            else:
                table[words[0]] = (kind, zone, side, participles, words, glyph, text.startswith("*"))
    for verbs in WORK.values():
        for nouns, _, face in WHO.values():
            said = [f"{noun} {verb}" for verb in verbs.split("|") for noun in nouns.split("|")]
            table[said[0]] = ("worker", "land", 118, "", said, face + "{tone}", True)
    table["person hanging"] = ("hanger", "cable", 50, "", ["person hanging from a bridge cable"], "", True)
    return table


LEXICON = lexicon()


@dataclass(frozen=True)
class Thing:
    """One drawn thing: its name in LEXICON, colour (or ""), size ("tiny", "huge" or ""), glyph, and box (x0, y0, x1, y1) in pixels."""

    name: str
    color: str
    size: str
    glyph: str
    box: tuple
    flip: bool = False
    angle: float = 0.0  # degrees


@dataclass(frozen=True)
class Scene:
    """One picture: things in the order they are talked about; paint colours walls and curtains; horizon in pixels from the top."""

    seed: int
    index: int
    name: str
    setting: str
    weather: str
    paint: str
    horizon: int
    things: tuple


def overlap(a: tuple, b: tuple) -> float:
    """Shared area of two boxes as a share of the smaller box, 0..1."""
    shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return shared / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def cable(scene: Scene):
    """The bridge's main cable: tower positions left and right, tower top, and the cable's height y(x), all in pixels."""
    rng = Random(f"{scene.seed}/{scene.index}/bridge")
    left, right, top, low = (
        rng.randint(20, 60),
        rng.randint(190, 236),
        rng.randint(18, 60),
        rng.randint(98, 118),
    )
    if scene.index == 0:
        left, right, top, low = 30, 226, 26, 112
    middle, half = (left + right) / 2, (right - left) / 2
    return left, right, top, lambda x: low - (low - top) * ((x - middle) / half) ** 2


def place(rng: Random, zone: str, side: float, scene: Scene, taken: list) -> tuple | None:
    """A box for a thing of this side: on its zone's band, smaller when farther away, hiding little; None when full."""
    _, _, _, _, _, land, sea = SETTINGS[scene.setting]
    depth, most, best = SIDE - scene.horizon, rng.choice((0, 0, 0.05, 0.3)), (2, None)
    for _ in range(60):
        if zone == "sky":
            size = side
            y1 = rng.uniform(size + 4, max(size + 6, scene.horizon - 4))
        else:
            near = rng.uniform(*(land if zone == "land" else sea))
            size = side if scene.setting in INDOORS else side * (0.72 + 0.5 * near)
            y1 = min(
                max(scene.horizon + near * depth, scene.horizon + 0.85 * size if zone == "deep" else 0),
                SIDE - 4,
            )
        x0, y0 = rng.uniform(3, SIDE - 3 - size), max(3, y1 - size)
        box = tuple(round(v) for v in (x0, y0, x0 + size, y0 + size))
        hidden = max((overlap(box, other) for other in taken), default=0)
        best = min(best, (hidden, box))
        if hidden <= most:
            break
    return best[1] if best[0] < 0.35 else None


def layout(index: int, seed: int = 0) -> Scene:
    """What is where in picture number index: a pure function of (index, seed); boxes lie inside the 256 x 256 picture."""
    rng = Random(f"{seed}/{index}/layout")
    name = f"{10002456 + 1013 * index + 379 * index * index % 1009}.jpg"  # grows with index: |step of the remainder| < 1013
    hanging, work = index % 77 == 0, {3: "stirring", 13: "washing"}.get(index % 20)
    setting = "bridge" if hanging else "kitchen" if work else rng.choice(list(SETTINGS))
    weather = (
        "indoors"
        if setting in INDOORS
        else rng.choice(("clear", "clear", "cloudy", "sunset", "night", "rain"))
        if index
        else "clear"
    )
    scene = Scene(
        seed, index, name, setting, weather, rng.choice(list(PAINT)), rng.randint(*SETTINGS[setting][4]), ()
    )
    kinds, _, landmarks = SETTINGS[setting][3].partition(" scenery:")
    things = []

    def add(name, count, size):
        """Put `count` of a thing into the scene."""
        kind, zone, side, _, _, glyph, tinted = LEXICON[name]
        size = "" if kind in PEOPLE else size
        side *= {"tiny": 0.6, "huge": 2, "": rng.uniform(1.1, 1.5)}[size]
        color = rng.choice(list(COLORS)) if tinted else ""
        glyph = glyph.replace("{tone}", chr(0x1F3FB + rng.randrange(5)))
        for _ in range(count):
            box = place(rng, zone, min(side, 150 if count == 1 else 96), scene, [t.box for t in things])
            if box:
                things.append(
                    Thing(
                        name,
                        color,
                        size,
                        glyph,
                        box,
                        rng.random() < 0.5,
                        rng.choice((0, 0, rng.uniform(-12, 12))),
                    )
                )

    if hanging:
        left, right, _, y = cable(scene)
        count = 5 if index == 0 else rng.randint(2, 4)
        for i in range(count):
            x, tall = (
                left + (right - left) * (i + 1 + rng.uniform(-0.2, 0.2)) / (count + 1),
                rng.uniform(46, 60),
            )
            box = tuple(round(v) for v in (x - 0.3 * tall, y(x), x + 0.3 * tall, y(x) + tall))
            face, color = rng.choice("👨👩") + chr(0x1F3FB + rng.randrange(5)), rng.choice(list(PAINT))
            things.append(Thing("person hanging", color, "", face, box))
    if work:
        names = [n for n in LEXICON if LEXICON[n][0] == "worker" and n.endswith(WORK[work].split("|")[0])]
        add(rng.choice(names), 1, "")
    groups = (
        rng.randint(0, 1) * (index > 0)
        if hanging
        else rng.randint(0, 2)
        if work
        else rng.choice((1, 1, 1, 1, 2, 2, 2, 2, 3, 4))
    )
    while groups > 0:
        kind = rng.choice(kinds.split()).replace("_", " ")
        name = rng.choice([n for n, row in LEXICON.items() if row[0] == kind])
        if all(thing.name != name for thing in things) and not (
            hanging and LEXICON[name][1] not in ("sea", "deep")
        ):
            add(
                name,
                1 if len(things) > 3 else rng.choice((1, 1, 1, 1, 1, 2, 2, 3, 4)),
                rng.choice(("", "", "", "", "tiny", "huge")),
            )
            groups -= 1
        elif hanging:
            groups -= rng.random() < 0.3
    if landmarks and rng.random() < 0.4:
        glyph = re.sub("\ufe0f", "", rng.choice(re.findall("[^\ufe0f]\ufe0f?", landmarks)))
        add(next(n for n, row in LEXICON.items() if row[5].strip("\ufe0f") == glyph), 1, "")
    return Scene(**{**vars(scene), "things": tuple(things)})


# ---- what people say about it


def plural(phrase: str) -> str:
    """'slice of pizza' -> 'slices of pizza', 'man riding a bike' -> 'men riding bikes', 'mouse' -> 'mice'."""
    head, rest = re.fullmatch(r"(.*?)( (?:of|on|in|with|under|from|wearing|\w\w+ing)\b.*)?", phrase).groups()
    if not (rest or "").startswith(" of "):
        rest = re.sub(r"\ban? ((?:\w+ )*)(\w+)$", lambda m: m[1] + plural(m[2]), rest or "")
    first, space, last = head.rpartition(" ")
    for pattern, ending in (r"(?<![aeiou])y$", "ies"), (r"(s|x|z|ch|sh)$", r"\1es"), (r"$", "s"):
        if last not in PLURALS and re.search(pattern, last):
            last = re.sub(pattern, ending, last, count=1)
            break
    return first + space + PLURALS.get(last, last) + rest


def article(phrase: str) -> str:
    """'a dog', 'an apple', 'an SUV', 'a UFO'."""
    return ("an " if re.match(r"[aeiouAEIO]|SUV", phrase) else "a ") + phrase


def say(rng: Random, group: list, rich: bool) -> str:
    """A noun phrase for things of one name: 'a dog', 'two puppies', and when rich their size and colour: 'a tiny red car'."""
    thing, (kind, _, _, _, words, _, _) = group[0], LEXICON[group[0].name]
    word, adjectives = rng.choice(words), []
    if rich and thing.size:
        word = words[0]
        adjectives.append(
            rng.choice({"tiny": ("tiny", "small", "little"), "huge": ("huge", "big", "large")}[thing.size])
        )
    if thing.color and kind == "worker":
        word = word.replace(" ", f" in {article(thing.color)} shirt ", 1) if rich else word
    elif thing.color and (rich or rng.random() < 0.5):
        adjectives.append(thing.color)
    if len(group) == 1:
        return article(" ".join([*adjectives, word]))
    return " ".join([NUMBERS.get(len(group), "several"), *adjectives, plural(word)])


def relation(rng: Random, a: list, b: list) -> str:
    """What is true of the boxes of a as seen from b: 'to the left of', 'above', 'behind', ... or 'near' when nothing sharper is."""
    ax0, ay0, ax1, ay1 = (f(t.box[i] for t in a) for i, f in enumerate((min, min, max, max)))
    bx0, by0, bx1, by1 = (f(t.box[i] for t in b) for i, f in enumerate((min, min, max, max)))
    level, flying = (
        min(ay1, by1) - max(ay0, by0) > 0.5 * min(ay1 - ay0, by1 - by0),
        "sky" in (LEXICON[a[0].name][1], LEXICON[b[0].name][1]),
    )
    true = []
    if ax1 <= bx0 + 6 or bx1 <= ax0 + 6:
        true += ["to the left of"] if ax1 <= bx0 + 6 else ["to the right of"]
        true += ["next to", "beside"] * (level and max(bx0 - ax1, ax0 - bx1) < 40)
    if min(ax1, bx1) > max(ax0, bx0):
        if flying:
            true += ["above", "over"] * (ay1 <= by0 + 4) + ["below", "under"] * (by1 <= ay0 + 4)
        elif len(a) == len(b) == 1 and overlap(a[0].box, b[0].box) > 0.05 and abs(ay1 - by1) > 3:
            true.append("behind" if ay1 < by1 else "in front of")
    return rng.choice(true or ["near", "not far from"])


def captions(scene: Scene) -> list[str]:
    """Five different true sentences of 4 to 18 words: the main thing, the setting, a relation or count, a colour, all of it."""
    rng = Random(f"{scene.seed}/{scene.index}/captions")
    groups = [
        [t for t in scene.things if t.name == name] for name in dict.fromkeys(t.name for t in scene.things)
    ]
    if scene.index == 0:
        return list(FIRST)
    if LEXICON[groups[0][0].name][0] not in ("hanger", "worker"):  # people talk about the biggest first
        groups.sort(
            key=lambda group: (
                LEXICON[group[0].name][0] == "scenery",
                -max(t.box[2] - t.box[0] for t in group),
            )
        )
    sky = rng.choice(LIGHT[scene.weather][0].split("|")) if scene.weather in LIGHT else ""
    if groups[0][0].name == "person hanging":
        return [
            finish(rng, text.format(n=NUMBERS[len(groups[0])], sky=sky)) for text in rng.sample(HANGING, 5)
        ]
    main, others = groups[0], groups[1:]
    kind, zone, _, participles, _, _, _ = LEXICON[main[0].name]
    scenes, land, sea = SETTINGS[scene.setting][:3]
    where = (land if zone == "land" else sea).split("|")
    if zone == "sky":
        where = [f"{over} {s}" for over in ("over", "above") for s in scenes.split("|")]
    elif kind == "worker":
        where = ["in the kitchen", "in a kitchen", "at the kitchen counter"]
    wall = {"room": "wall", "kitchen": "wall", "stage": "curtain"}.get(scene.setting)
    walls, sky = (
        (f"with {scene.paint} {wall}s", f"in front of {article(scene.paint)} {wall}") if wall else (sky, sky)
    )
    shapes = (
        [
            "{a} {v}",
            "there {are} {a}",
            "a picture of {a}",
            "we can see {a} here",
            "here {are} {a} {v}",
            "{a} {v} {where}",
        ],
        [
            "{a} {v} {where}",
            "{a} {where}",
            "{where} there {are} {a}",
            "{scene} with {a}",
            "{a} can be seen {where} {sky}",
            "{a} {where} {sky}",
            "{a} {v} {where} {sky}",
            "{scene} {walls} with {a}",
        ],
        ["{a} {relation} {b}", "{a} {v} {relation} {b}", "{a} {are} {relation} {b}"]
        if others
        else ["{a} {v} {side}", "{side} there {are} {a}", "{a} {side}"]
        if len(main) == 1
        else ["there {are} exactly {a} {where}", "{a} together {where}", "I count {a} {where}"],
        ["{rich} {where} {sky}", "{rich} {sky}", "{scene} {walls}, with {rich}", "{rich} {v} {where} {sky}"],
        [
            "{all}",
            "just {all} {sky}",
            "{scene} with {all}",
            "look, {all}",
            "{all} in one picture",
            "{scene} {walls}: {all}",
        ],
    )
    centre = sum(t.box[0] + t.box[2] for t in main) / len(main) / 2 / SIDE
    side = "on the left side of the picture" if centre < 0.38 else "near the middle of the picture"
    side = "on the right of the picture" if centre > 0.62 else side
    said = []
    while len(said) < 5:
        other = rng.choice(others or [main])
        rich = len(said) == 3 or rng.random() < 0.25
        phrases = [say(rng, group, rng.random() < 0.4) for group in groups]
        rng.shuffle(phrases)
        text = rng.choice(shapes[len(said)]).format(
            sky=sky,
            walls=walls,
            side=side,
            are="is" if len(main) == 1 else "are",
            a=say(rng, main, rich),
            b=say(rng, other, rng.random() < 0.4),
            rich=say(rng, main, True),
            v=rng.choice(participles.split("|")),
            where=rng.choice(where),
            scene=rng.choice(scenes.split("|")),
            relation=relation(rng, main, other),
            all=" and ".join(filter(None, [", ".join(phrases[:-1]), phrases[-1]])),
        )
        text = finish(rng, text)
        if 4 <= len(text.split()) <= 18 and text.lower().strip(".") not in [
            t.lower().strip(".") for t in said
        ]:
            said.append(text)
    return said


def unique(scene: Scene) -> str:
    """The one caption of unique_caption.csv: the longest of the middle three of the five (setting, relation, colour)."""
    return max(captions(scene)[1:4], key=lambda text: len(text.split()))


def finish(rng: Random, text: str) -> str:
    """One space between words; often a capital, often a full stop."""
    text = re.sub(r"\s+", " ", text).replace(" ,", ",").replace(" :", ":").strip()
    return (text[0].upper() + text[1:] if rng.random() < 0.6 else text) + "." * (rng.random() < 0.4)


def boxes(scene: Scene) -> dict:
    """{"a dog": [[x0, y0, x1, y1], ...]} in pixels: the boxes of all things of a name."""
    names = dict.fromkeys(thing.name for thing in scene.things)
    return {
        article(name): [list(thing.box) for thing in scene.things if thing.name == name] for name in names
    }


# ---- how it looks


class Pen:
    """PIL shapes in pixels of the picture, on a see-through canvas twice as fine so that edges come out smooth."""

    def __init__(self):
        from PIL import Image, ImageDraw

        self.image = Image.new("RGBA", (2 * SIDE, 2 * SIDE))
        self.ink = ImageDraw.Draw(self.image)

    def rect(self, x0, y0, x1, y1, fill, r=0):
        self.ink.rounded_rectangle([2 * x0, 2 * y0, 2 * max(x0, x1), 2 * max(y0, y1)], 2 * r, fill)

    def oval(self, x, y, rx, ry, fill):
        self.ink.ellipse([2 * (x - rx), 2 * (y - ry), 2 * (x + rx), 2 * (y + ry)], fill)

    def poly(self, points, fill):
        self.ink.polygon([(2 * x, 2 * y) for x, y in points], fill)

    def line(self, points, fill, width=1.0):
        self.ink.line([(2 * x, 2 * y) for x, y in points], fill, round(2 * width), joint="curve")


def near(rng: Random, color: tuple, spread: int = 14) -> tuple:
    """A colour like this one, so that no two beaches have the same sand."""
    return tuple(max(0, min(255, c + rng.randint(-spread, spread))) for c in color)


def hills(pen, rng, y, height, color, steps=7):
    """A rolling or jagged skyline from edge to edge, filled down to the bottom."""
    xs = [SIDE * i / steps for i in range(steps + 1)]
    pen.poly([(0, SIDE), *((x, y - rng.uniform(0, height)) for x in xs), (SIDE, SIDE)], color)


def tree(pen, rng, x, y, tall):
    """A fir or a leafy tree whose trunk stands at (x, y)."""
    green, trunk = near(rng, (58, 120, 62), 24), near(rng, (110, 78, 50))
    pen.rect(x - tall * 0.06, y - tall * 0.4, x + tall * 0.06, y, trunk)
    for i in range(3):
        if rng.random() < 0.5:
            pen.poly(
                [
                    (x - tall * (0.3 - 0.06 * i), y - tall * (0.2 + 0.22 * i)),
                    (x, y - tall * (0.55 + 0.22 * i)),
                    (x + tall * (0.3 - 0.06 * i), y - tall * (0.2 + 0.22 * i)),
                ],
                green,
            )
        else:
            pen.oval(
                x + rng.uniform(-0.1, 0.1) * tall,
                y - tall * (0.5 + 0.14 * i),
                tall * 0.26,
                tall * 0.22,
                green,
            )


def waves(pen, rng, y0, y1, color):
    """Water from y0 to y1 with short light strokes."""
    pen.rect(0, y0, SIDE, y1, color)
    for _ in range(int((y1 - y0) / 3)):
        x, y = rng.uniform(0, SIDE), rng.uniform(y0 + 2, y1 - 2)
        pen.line([(x, y), (x + rng.uniform(6, 22), y)], tuple(min(255, c + 26) for c in color), 1)


def ground(pen: Pen, rng: Random, scene: Scene) -> None:
    """Draws everything of the setting but the sky and the things."""
    h, setting, paint = scene.horizon, scene.setting, near(rng, PAINT[scene.paint])
    grass, water, sand = (
        near(rng, (112, 170, 82), 26),
        near(rng, (52, 128, 178), 24),
        near(rng, (232, 208, 158)),
    )
    if setting in ("beach", "sea"):
        waves(pen, rng, h, SIDE, water)
        if setting == "beach":
            tilt, shore = rng.uniform(-12, 12), h + 0.48 * (SIDE - h)
            for drop, color in ((-5, (250, 250, 250)), (0, sand)):
                pen.poly(
                    [
                        (0, shore + drop + tilt),
                        (128, shore + drop + 4),
                        (SIDE, shore + drop - tilt),
                        (SIDE, SIDE),
                        (0, SIDE),
                    ],
                    color,
                )
            for _ in range(rng.randint(10, 60)):
                pen.oval(
                    rng.uniform(0, SIDE),
                    rng.uniform(shore + 14, SIDE),
                    1,
                    0.7,
                    near(rng, (190, 164, 120), 20),
                )
        elif rng.random() < 0.5:
            x = rng.uniform(20, 236)
            pen.poly([(x - 40, h), (x - 12, h - 16), (x + 8, h - 8), (x + 44, h)], near(rng, (96, 120, 110)))
    elif setting == "street":
        x = -10
        while x < SIDE:
            wide, top, wall = (
                rng.uniform(28, 60),
                rng.uniform(18, h - 50),
                near(rng, rng.choice(list(PAINT.values())), 30),
            )
            pen.rect(x, top, x + wide, h, wall)
            lit = (255, 226, 130) if scene.weather == "night" else near(rng, (70, 90, 116))
            for wy in range(int(top) + 8, h - 14, 16):
                for wx in range(int(x) + 6, int(x + wide) - 8, 13):
                    pen.rect(wx, wy, wx + 7, wy + 9, lit if rng.random() < 0.8 else near(rng, (60, 62, 72)))
            x += wide + rng.choice((0, 0, 6))
        pen.rect(0, h, SIDE, h + 22, near(rng, (188, 186, 180)))
        pen.rect(0, h + 22, SIDE, SIDE, near(rng, (92, 94, 100)))
        for x in range(rng.randint(-30, 0), SIDE, 52):
            pen.rect(x, h + 52, x + 28, h + 56, (236, 236, 226))
    elif setting == "road":
        hills(pen, rng, h + 4, 30, near(rng, (92, 140, 92)))
        pen.rect(0, h, SIDE, SIDE, grass)
        x, wide = rng.uniform(80, 176), rng.uniform(90, 140)
        pen.poly([(x - 5, h), (x + 5, h), (128 + wide, SIDE), (128 - wide, SIDE)], near(rng, (100, 100, 106)))
        for i in range(5):
            t0, t1 = (i / 5) ** 1.6, ((i + 0.5) / 5) ** 1.6
            pen.line([(x + (128 - x) * t, h + (SIDE - h) * t) for t in (t0, t1)], (244, 236, 200), 1 + 3 * t1)
        for _ in range(rng.randint(0, 6)):
            tree(
                pen,
                rng,
                rng.choice((rng.uniform(0, 70), rng.uniform(190, SIDE))),
                h + rng.uniform(2, 14),
                rng.uniform(24, 50),
            )
    elif setting in ("forest", "park", "field"):
        if setting != "park":
            hills(pen, rng, h + 6, 40, near(rng, (88, 134, 96)))
        if setting == "forest":
            for x in range(-10, SIDE + 10, rng.randint(14, 22)):
                tree(pen, rng, x + rng.uniform(-6, 6), h + rng.uniform(0, 8), rng.uniform(90, 150))
        pen.rect(0, h, SIDE, SIDE, near(rng, (86, 122, 66), 20) if setting == "forest" else grass)
        if setting == "park":
            pen.poly(
                [(rng.uniform(20, 230), h), (rng.uniform(150, 240), SIDE), (rng.uniform(20, 110), SIDE)],
                near(rng, (222, 206, 170)),
            )
        for _ in range({"forest": 4, "park": rng.randint(4, 9), "field": rng.randint(0, 2)}[setting]):
            tree(pen, rng, rng.uniform(0, SIDE), h + rng.uniform(2, 12), rng.uniform(40, 80))
        for _ in range(rng.randint(10, 70)):
            color = near(rng, rng.choice(((250, 240, 120), (240, 240, 240), grass)), 20)
            pen.oval(rng.uniform(0, SIDE), rng.uniform(h + 14, SIDE), 1.4, 1.2, color)
        if setting == "field" and rng.random() < 0.5:
            for y in (h + 12, h + 20):
                pen.line([(0, y), (SIDE, y)], (150, 116, 78), 2)
            for x in range(8, SIDE, 24):
                pen.rect(x, h + 6, x + 3, h + 28, (150, 116, 78))
    elif setting == "mountain":
        for y, tall, color in ((h - 20, 110, (132, 146, 172)), (h, 80, (106, 120, 146))):
            for _ in range(4):
                x, top = rng.uniform(0, SIDE), y - rng.uniform(0.4, 0.8) * tall
                pen.poly([(x - 80, h + 4), (x, top), (x + 80, h + 4)], near(rng, color))
                snow = top + 22 * (h + 4 - top) / 80
                pen.poly([(x - 22, snow), (x, top), (x + 22, snow), (x + 5, top + 16)], (248, 250, 255))
        hills(pen, rng, h + 8, 14, near(rng, (236, 242, 250), 8))
        pen.poly(
            [(0, h + 50), (SIDE, h + rng.uniform(20, 90)), (SIDE, SIDE), (0, SIDE)],
            near(rng, (222, 232, 246), 6),
        )
    elif setting == "desert":
        for i in range(4):
            hills(
                pen,
                rng,
                h + 14 + i * 24,
                26,
                near(rng, (226 - 8 * i, 176 - 10 * i, 108 - 8 * i), 10),
                rng.randint(2, 5),
            )
    elif setting == "bridge":
        left, right, top, y = cable(scene)
        deck, steel = (
            h + 9,
            near(rng, rng.choice(((186, 70, 52), (110, 116, 128), (70, 92, 120), (150, 140, 120)))),
        )
        hills(pen, rng, h, 36, near(rng, (96, 132, 104)))
        waves(pen, rng, h - 4, SIDE, water)
        for x in (left, right):
            pen.rect(x - 5, top, x + 5, SIDE - 14, steel, 2)
            pen.line([(x, top), (-20 if x == left else SIDE + 20, deck)], steel, 2.5)
        for x in range(left + 10, right - 4, rng.choice((10, 12, 14))):
            pen.line([(x, y(x)), (x, deck)], steel, 0.8)
        pen.line([(x, y(x)) for x in range(left, right + 1, 3)], steel, 3)
        pen.rect(0, deck, SIDE, deck + 9, near(rng, (116, 112, 112)))
        pen.line([(0, deck), (SIDE, deck)], steel, 2)
    elif setting == "river":
        hills(pen, rng, h, 26, near(rng, (100, 142, 98)))
        pen.rect(0, h, SIDE, SIDE, grass)
        waves(pen, rng, h + 22, h + 0.78 * (SIDE - h), water)
        stone, arches = near(rng, (168, 158, 146), 20), rng.randint(2, 4)
        pen.rect(0, h - 2, SIDE, h + 12, stone)
        for i in range(arches + 1):
            pen.rect(SIDE * i / arches - 8, h + 10, SIDE * i / arches + 8, h + 40, stone)
        for _ in range(6):
            pen.oval(
                rng.uniform(0, SIDE),
                SIDE - rng.uniform(2, 40),
                rng.uniform(3, 8),
                3,
                near(rng, (80, 140, 70)),
            )
    elif setting == "playground":
        pen.rect(0, h, SIDE, SIDE, near(rng, (226, 200, 150)) if rng.random() < 0.6 else grass)
        pen.rect(0, h - 6, SIDE, h + 6, near(rng, (96, 150, 84)))
        x, frame = rng.uniform(20, 150), near(rng, PAINT[scene.paint])
        pen.line([(x - 8, h + 30), (x + 6, h - 50), (x + 74, h - 50), (x + 88, h + 30)], frame, 4)
        for s in (x + 24, x + 54):
            pen.line([(s, h - 50), (s, h + 10)], (90, 90, 96), 1)
            pen.line([(s + 12, h - 50), (s + 12, h + 10)], (90, 90, 96), 1)
            pen.rect(s - 2, h + 8, s + 14, h + 12, near(rng, (180, 70, 60), 40))
        pen.oval(rng.uniform(40, 220), 240, 70, 14, near(rng, (240, 222, 176)))
    elif setting == "stage":
        pen.rect(0, 0, SIDE, h, near(rng, (46, 40, 58)))
        for x in range(0, SIDE, 16):
            pen.rect(x, 0, x + 9, h, tuple(int(c * 0.8) for c in paint))
            pen.rect(x + 9, 0, x + 16, h, tuple(int(c * 0.6) for c in paint))
        pen.rect(0, h, SIDE, SIDE, near(rng, (150, 104, 66), 20))
        for _ in range(rng.randint(1, 3)):
            pen.oval(rng.uniform(40, 216), rng.uniform(h + 20, SIDE - 16), 46, 12, near(rng, (214, 176, 116)))
    elif setting == "room":
        pen.rect(0, 0, SIDE, h, paint)
        pen.rect(0, h, SIDE, SIDE, near(rng, (176, 128, 84), 26))
        pen.rect(0, h - 6, SIDE, h, (240, 236, 228))
        for y in range(h + 12, SIDE, 18):
            pen.line([(0, y), (SIDE, y)], near(rng, (140, 98, 62), 6), 1)
        x, y, wide = rng.uniform(10, 150), rng.uniform(18, 40), rng.uniform(50, 90)
        pen.rect(x, y, x + wide, y + 62, (246, 244, 240))
        pen.rect(x + 4, y + 4, x + wide - 4, y + 58, near(rng, (166, 210, 244), 20))
        pen.line([(x + wide / 2, y), (x + wide / 2, y + 62)], (246, 244, 240), 3)
        pen.rect(
            (x + 140) % 210, y + 6, (x + 140) % 210 + 34, y + 34, near(rng, rng.choice(list(PAINT.values())))
        )
        pen.oval(
            rng.uniform(70, 190),
            SIDE - 26,
            rng.uniform(60, 110),
            22,
            near(rng, rng.choice(list(PAINT.values())), 20),
        )
    elif setting == "table":
        pen.rect(0, 0, SIDE, h, near(rng, rng.choice(list(PAINT.values())), 24))
        wood = near(rng, (178, 124, 76), 34)
        pen.rect(0, h, SIDE, SIDE, wood)
        for i in range(1, 7):
            y = h + (SIDE - h) * (i / 7) ** 1.4
            pen.line([(0, y), (SIDE, y)], tuple(max(0, c - 24) for c in wood), 1)
        if rng.random() < 0.4:
            pen.oval(
                rng.uniform(80, 176),
                rng.uniform(190, 220),
                rng.uniform(60, 90),
                34,
                near(rng, rng.choice(list(PAINT.values())), 20),
            )
    elif setting == "kitchen":
        pen.rect(0, 0, SIDE, h, paint)
        step = rng.choice((14, 18, 24))
        for x in range(0, SIDE + step, step):
            pen.line([(x, 60), (x, h)], tuple(max(0, c - 22) for c in paint), 1)
        for y in range(60, h, step):
            pen.line([(0, y), (SIDE, y)], tuple(max(0, c - 22) for c in paint), 1)
        pen.rect(0, h + 50, SIDE, SIDE, near(rng, (120, 104, 90)))
        cupboard = near(rng, rng.choice(((206, 170, 120), (236, 232, 224), (130, 150, 160))), 20)
        for x in range(-20, SIDE, 58):
            if rng.random() < 0.8:
                pen.rect(x, 0, x + 54, 46, cupboard, 3)
                pen.oval(x + 46, 38, 2, 2, (90, 90, 90))
            pen.rect(x, h + 58, x + 54, SIDE, cupboard, 3)
        pen.rect(0, h, SIDE, h + 54, near(rng, (214, 208, 200), 16))
        pen.rect(0, h + 48, SIDE, h + 56, near(rng, (150, 140, 130)))


def sky(pen: Pen, rng: Random, scene: Scene) -> None:
    """Draws the sky down to the bottom of the picture: gradient, sun or moon, stars, clouds."""
    _, top, bottom, _ = LIGHT[scene.weather]
    for y in range(0, SIDE, 2):
        t = min(1, y / scene.horizon)
        pen.rect(0, y, SIDE, y + 2, tuple(round(a + (b - a) * t) for a, b in zip(top, bottom, strict=True)))
    x = rng.uniform(24, 232)
    if scene.weather == "night":
        for _ in range(rng.randint(20, 70)):
            pen.oval(rng.uniform(0, SIDE), rng.uniform(0, scene.horizon), 0.8, 0.8, (255, 255, 230))
        pen.oval(x, 30, 13, 13, (250, 244, 210))
        pen.oval(x + rng.uniform(-9, 9), 27, 11, 11, (14, 20, 58))
    elif scene.weather in ("clear", "sunset"):
        pen.oval(x, scene.horizon - 24 if scene.weather == "sunset" else 28, 15, 15, (255, 236, 150))
    for _ in range(
        {"clear": rng.randint(0, 3), "cloudy": 7, "rain": 8, "sunset": 2, "night": 0}[scene.weather]
    ):
        x, y = rng.uniform(0, SIDE), rng.uniform(8, scene.horizon * 0.6)
        color = (255, 255, 255) if scene.weather == "clear" else near(rng, bottom, 8)
        for _ in range(4):
            pen.oval(
                x + rng.uniform(-20, 20),
                y + rng.uniform(-5, 5),
                rng.uniform(10, 20),
                rng.uniform(5, 10),
                color,
            )


def figure(pen: Pen, rng: Random, thing: Thing) -> tuple:
    """Draws the body of a hanging or working person into the box; returns where the face goes, (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = thing.box
    x, wide, tall, shirt, skin = (
        (x0 + x1) / 2,
        x1 - x0,
        y1 - y0,
        PAINT.get(thing.color, (60, 60, 66)),
        (222, 172, 130),
    )
    if thing.name == "person hanging":
        for s in (-1, 1):
            pen.line(
                [(x + s * 0.34 * wide, y0), (x + s * 0.24 * wide, y0 + 0.44 * tall)], shirt, 0.09 * wide + 1
            )
            pen.oval(x + s * 0.34 * wide, y0 + 1, 2.4, 2.4, skin)
            pen.line(
                [(x + s * 0.1 * wide, y0 + 0.66 * tall), (x + s * rng.uniform(0.1, 0.34) * wide, y1 - 2)],
                (50, 60, 96),
                0.13 * wide,
            )
        pen.rect(x - 0.26 * wide, y0 + 0.4 * tall, x + 0.26 * wide, y0 + 0.72 * tall, shirt, 4)
        return x - 0.15 * tall, y0 + 0.12 * tall, x + 0.15 * tall, y0 + 0.42 * tall
    pen.rect(x - 0.3 * wide, y0 + 0.42 * tall, x + 0.3 * wide, y1 - 4, shirt, 12)
    if thing.name.endswith("a pan"):
        pen.rect(x - 0.42 * wide, y1 - 10, x + 0.42 * wide, y1, (66, 66, 72), 3)
        pen.line([(x + 0.2 * wide, y1 - 15), (x + 0.5 * wide, y1 - 20)], (40, 40, 44), 4)
        pen.oval(x, y1 - 15, 0.26 * wide, 9, (44, 44, 48))
        pen.oval(x, y1 - 16, 0.22 * wide, 6, near(rng, (206, 130, 60), 40))
        pen.line([(x - 0.2 * wide, y1 - 44), (x + rng.uniform(-6, 10), y1 - 16)], (150, 104, 62), 3)
        hands = [(x - 0.2 * wide, y1 - 42), (x + 0.4 * wide, y1 - 19)]
    else:
        pen.rect(x - 0.44 * wide, y1 - 20, x + 0.44 * wide, y1, (188, 194, 202), 6)
        pen.rect(x - 0.4 * wide, y1 - 18, x + 0.4 * wide, y1 - 5, (140, 190, 220), 5)
        pipe, spout = x + 0.48 * wide, x + 0.36 * wide
        pen.line([(pipe, y1 - 4), (pipe, y1 - 44), (spout, y1 - 44), (spout, y1 - 34)], (130, 136, 144), 4)
        pen.oval(x, y1 - 24, 0.17 * wide, 0.15 * wide, (250, 250, 252))
        pen.oval(x, y1 - 24, 0.11 * wide, 0.09 * wide, (222, 228, 236))
        for _ in range(16):
            pen.oval(
                x + rng.uniform(-0.38, 0.38) * wide,
                y1 - rng.uniform(6, 22),
                3.4,
                3.4,
                near(rng, (236, 246, 252), 8),
            )
        hands = [(x - 0.17 * wide, y1 - 26), (x + 0.17 * wide, y1 - 24)]
    for s, hand in zip((-1, 1), hands, strict=True):
        shoulder, elbow = (x + s * 0.25 * wide, y0 + 0.5 * tall), (x + s * 0.36 * wide, y0 + 0.7 * tall)
        pen.line([shoulder, elbow, hand], tuple(int(c * 0.86) for c in shirt), 8)
        pen.oval(*hand, 5, 5, skin)
    return x - 0.23 * tall, y0, x + 0.23 * tall, y0 + 0.46 * tall


def repaint(glyph, color: str):
    """The RGBA glyph with the hue it has most of turned into color, one of COLORS."""
    from PIL import Image

    alpha = glyph.getchannel("A")
    h, s, v = glyph.convert("RGB").convert("HSV").split()
    vivid = Image.merge("L", [s]).point(lambda x: 255 * (x > 36))
    counts = h.histogram(Image.composite(vivid, Image.new("L", glyph.size), alpha))
    most = max(range(256), key=lambda i: sum(counts[(i + k) % 256] for k in range(-6, 7)))
    hue, strength, light = COLORS[color]
    chosen = Image.composite(
        h.point(lambda x: 255 * (min((x - most) % 256, (most - x) % 256) < 22)),
        Image.new("L", glyph.size),
        vivid,
    )
    s, v = s.point(lambda x: int(max(x, 190) * strength)), v.point(lambda x: min(255, int(x * light)))
    new = Image.merge("HSV", (h.point(lambda x: hue), s, v))
    out = Image.composite(new.convert("RGB"), glyph.convert("RGB"), chosen)
    out.putalpha(alpha)
    return out


def stamp(font, thing: Thing):
    """The thing's glyph as a tight RGBA picture: repainted, flipped, turned."""
    from PIL import Image, ImageDraw, ImageOps

    glyph = Image.new("RGBA", (160, 150))
    ImageDraw.Draw(glyph).text((4, 4), thing.glyph, font=font, embedded_color=True)
    glyph = glyph.crop(glyph.getbbox())
    glyph = (
        repaint(glyph, thing.color)
        if LEXICON[thing.name][6] and LEXICON[thing.name][0] not in ("worker", "hanger")
        else glyph
    )
    glyph = ImageOps.mirror(glyph) if thing.flip else glyph
    return glyph.rotate(thing.angle, Image.Resampling.BICUBIC, expand=True) if thing.angle else glyph


def draw(scene: Scene, font):
    """The scene as a 256 x 256 RGB picture; font comes from load_font."""
    from PIL import Image, ImageChops

    rng = Random(f"{scene.seed}/{scene.index}/draw")
    canvas, pen = Image.new("RGB", (SIDE, SIDE)), Pen()
    light = LIGHT.get(scene.weather, ("", 0, 0, (1, 1, 1)))[3]

    def lay(layer, light):
        layer = layer.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        shade = Image.new("RGB", layer.size, tuple(int(255 * c) for c in light))
        canvas.paste(ImageChops.multiply(layer.convert("RGB"), shade), (0, 0), layer.getchannel("A"))

    if scene.weather in LIGHT:
        sky(pen, rng, scene)
        lay(pen.image, (1, 1, 1))
        pen = Pen()
    ground(pen, rng, scene)
    lay(pen.image, light)
    soft = tuple(0.5 + 0.5 * c for c in light)
    for thing in sorted(
        scene.things, key=lambda t: (LEXICON[t.name][1] != "sky", LEXICON[t.name][0] != "worker", t.box[3])
    ):
        pen, box = Pen(), thing.box
        if LEXICON[thing.name][0] in ("worker", "hanger"):
            box = figure(pen, rng, thing)
        elif LEXICON[thing.name][1] == "land":
            pen.oval(
                (box[0] + box[2]) / 2,
                box[3] - 1,
                0.4 * (box[2] - box[0]),
                0.05 * (box[2] - box[0]),
                (20, 20, 30, 70),
            )
        glyph, (wide, tall) = stamp(font, thing), (2 * (box[2] - box[0]), 2 * (box[3] - box[1]))
        scale = min(wide / glyph.width, tall / glyph.height)
        glyph = glyph.resize(
            (max(1, round(glyph.width * scale)), max(1, round(glyph.height * scale))),
            Image.Resampling.LANCZOS,
        )
        pen.image.alpha_composite(
            glyph, (round(2 * box[0] + (wide - glyph.width) / 2), round(2 * box[1] + tall - glyph.height))
        )
        lay(pen.image, soft)
    if scene.weather == "rain":
        pen = Pen()
        for _ in range(rng.randint(60, 140)):
            x, y = rng.uniform(0, SIDE), rng.uniform(0, SIDE)
            pen.line([(x, y), (x - 3, y + 10)], (225, 232, 240, 170), 0.7)
        lay(pen.image, (1, 1, 1))
    return canvas


def load_font(path: str = FONT):
    """Noto Color Emoji at its only size; raises SystemExit naming the way out when the font or Pillow's raqm is missing."""
    from PIL import ImageFont, features

    if not Path(path).is_file():
        raise SystemExit(
            f"{path}: no such font; apt-get install fonts-noto-color-emoji, or pass --font PATH of a NotoColorEmoji.ttf"
        )
    if not features.check("raqm"):
        raise SystemExit(
            "Pillow was built without raqm, which joins a person and an activity into one glyph; pip install --upgrade pillow"
        )
    return ImageFont.truetype(path, 109, layout_engine=ImageFont.Layout.RAQM)


def main(argv=None):
    """Draw the images and write both CSVs. Exit code 0 done, 1 failed; argparse itself exits with 2."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("my_image_archive"), help="folder the JPEGs go to")
    parser.add_argument(
        "--captions", type=Path, default=Path("caption.csv"), help="CSV to write, five captions an image"
    )
    parser.add_argument(
        "--unique", type=Path, default=Path("unique_caption.csv"), help="CSV to write, one caption an image"
    )
    parser.add_argument("--count", type=int, default=1000, help="number of pictures")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws another archive")
    parser.add_argument("--font", default=FONT, help="path of NotoColorEmoji.ttf")
    parser.add_argument(
        "--boxes",
        type=Path,
        help="write only this JSON, image name -> text -> boxes in pixels; needs no font",
    )
    parser.add_argument(
        "--overwrite",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="replace files that are there already",
    )
    args = parser.parse_args(argv)
    for path in (args.out, args.captions, args.unique) if not args.boxes else (args.boxes,):
        if path.exists() and not args.overwrite:
            raise SystemExit(
                f"{path} exists; pass --overwrite to replace what is in it, or name another place"
            )

    scenes = [layout(index, args.seed) for index in range(args.count)]
    if args.boxes:
        args.boxes.write_text(
            json.dumps({scene.name: boxes(scene) for scene in scenes}, indent=1) + "\n", encoding="utf-8"
        )
        print(f"the boxes of {len(scenes)} pictures in {args.boxes}")
        return
    font = load_font(args.font)
    args.out.mkdir(parents=True, exist_ok=True)
    for scene in scenes:
        draw(scene, font).save(args.out / scene.name, quality=78, optimize=True)
    for path, speak in ((args.captions, captions), (args.unique, lambda scene: [unique(scene)])):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["image_name", "comment"])
            writer.writerows([scene.name, text] for scene in scenes for text in speak(scene))
    size = sum((args.out / scene.name).stat().st_size for scene in scenes)
    print(
        f"{len(scenes)} pictures, {size / 1e6:.1f} MB, in {args.out}; captions in {args.captions} and {args.unique}"
    )


if __name__ == "__main__":
    main()
