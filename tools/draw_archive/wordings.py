"""The words of the questions, and which things of the vocabulary cannot be told apart in a drawing."""

from .vocabulary import GENDERED, LEXICON, NAMES, PEOPLE, TABLES, split

# At least three wordings of each question. Which one is used does not depend on the answer.
WORDINGS = {
    "what": (
        "What kind of {kind} is there?",
        "Which {kind} can you see?",
        "What {kind} does the picture show?",
    ),
    "main": (
        "What is this a picture of?",
        "What is the main thing in the picture?",
        "What does the picture mainly show?",
    ),
    "count": (
        "How many {things} are there?",
        "How many {things} can you see?",
        "How many {things} does the picture show?",
    ),
    "color": (
        "What color is the {a}?",
        "Which color does the {a} have?",
        "What is the color of the {a}?",
    ),
    "where": ("Where is this?", "Where does this take place?", "Where is the scene set?"),
    "exists": ("Is there {a}?", "Can you see {a}?", "Does the picture show {a}?"),
    "side": (
        "Is the {a} on the left or on the right?",
        "On which side of the picture is the {a}?",
        "Which half of the picture is the {a} in, left or right?",
    ),
    "relation": (
        "Is the {a} left or right of the {b}?",
        "Is the {a} to the left or to the right of the {b}?",
        "On which side of the {b} is the {a}?",
    ),
    "height": (
        "Is the {a} above or below the {b} in the picture?",
        "In the picture, is the {a} above or below the {b}?",
        "Does the {a} appear above or below the {b}?",
    ),
    "size": (
        "Is the {a} bigger or smaller than the {b} in the picture?",
        "In the picture, is the {a} bigger or smaller than the {b}?",
        "Compared with the {b}, is the {a} drawn bigger or smaller?",
    ),
    "weather": ("What is the weather like?", "How is the weather?", "What kind of weather is it?"),
    "time": (
        "What time of day is it?",
        "Is it day, sunset or night?",
        "Which time of day does the picture show?",
    ),
    "action": (
        "What is the person doing?",
        "What is the person busy with?",
        "What do you see the person doing?",
    ),
    "actions": (
        "What are the people doing?",
        "What are the people busy with?",
        "What do you see the people doing?",
    ),
}
# The answers of the types that are balanced. The other types have so many that none is frequent.
ANSWERS = {
    "count": ("one", "two", "three"),  # four is rarer
    "side": ("left", "right"),
    "relation": ("left", "right"),
    "height": ("above", "below"),
    "size": ("bigger", "smaller"),
    "weather": ("sunny", "cloudy", "rainy"),
    "time": ("day", "sunset", "night"),
}
WEATHER = {"clear": "sunny", "cloudy": "cloudy", "rain": "rainy"}
TIME = {"clear": "day", "cloudy": "day", "rain": "day", "sunset": "sunset", "night": "night"}
PLACES = {
    "beach": "on the beach",
    "sea": "at sea",
    "street": "on a city street",
    "road": "on a country road",
    "forest": "in the forest",
    "mountain": "in the mountains",
    "field": "in a field",
    "park": "in the park",
    "desert": "in the desert",
    "bridge": "at a suspension bridge",
    "river": "by the river",
    "playground": "on the playground",
    "stage": "on stage",
    "room": "in the living room",
    "table": "on a table",
    "kitchen": "in the kitchen",
}
ACTIONS = {  # of the people whose name does not say what the picture shows
    "man climbing a cliff": "climbing",  # the emoji shows no cliff
    "woman climbing a cliff": "climbing",
    "person hanging": "hanging from a cable",
    "woman dancing": "dancing",
    "man dancing": "dancing",
    "jockey on a horse": "riding a horse",
    "fencer": "fencing",
    "skier": "skiing",
    "snowboarder": "snowboarding",
}


def doing(name):
    """What a person of LEXICON is doing, or None: 'man running' -> 'running', 'fencer' -> 'fencing'."""
    if name not in ACTIONS and LEXICON[name].kind in (*GENDERED, "worker"):
        return name.partition(" ")[2]
    return ACTIONS.get(name)


def noun(name):
    """What questions call a thing: 'dog', and 'person who is running' for a man and for a woman."""
    action = doing(name)
    return f"person who is {action}" if action and name not in NAMES["sportsman"] + NAMES["skier"] else name


def nouns(names):
    """The set of nouns of a text of names: "dog|poodle" -> {"dog", "poodle"}."""
    return {noun(name) for name in split(names)}


def kinds(text):
    """The set of nouns of all things of these kinds."""
    return {noun(name) for name, entry in LEXICON.items() if entry.kind in split(text)}


# Nouns that may be taken for each other. Where one is shown, nothing is asked about the others.
ALIKE = [
    nouns(text)
    for text in (
        "dog|poodle",
        "cat|tiger|leopard",
        "horse|jockey on a horse",
        "cow|bison",
        "monkey|gorilla",
        "fish|tropical fish|shark|dolphin|whale",
        "car|taxi|race car|police car|ambulance|pickup truck|auto rickshaw|fire truck",
        "city bus|tram|steam locomotive",
        "bicycle|man cycling",
        "motorcycle|motor scooter",
        "canoe|man rowing a boat",
        "basketball|man dribbling a basketball",
        "umbrella|beach umbrella",
        "parachutist|balloon",
        "tent|circus tent",
        "leafy tree|fir tree|palm tree",
        "suitcase|toolbox",
        "dress|woman dancing",
        "frying pan with an egg|pot of stew|man stirring a pan",
        "spoon|man stirring a pan",
        "man walking|man running",
    )
]
TREES = nouns("leafy tree|fir tree")
# What the setting itself shows and no Thing tells of: nothing is asked about these there.
BACKGROUND = {
    "forest": TREES,
    "park": TREES,
    "field": TREES,
    "road": TREES,
    "street": nouns("house|church|castle"),
    "playground": nouns("playground slide"),
    "room": nouns("television"),
}
# name: (what belongs to it, what may be said to). A question about it needs a scene without the latter.
CATEGORIES = {
    "animal": (
        kinds("pet|farm|wild|wood|crawler|waterbird|fish|bird"),
        nouns("jockey on a horse|teddy bear"),
    ),
    "person": (kinds("|".join((*PEOPLE, "hanger"))), nouns("parachutist|race car|snowman|toy robot")),
    "vehicle": (
        kinds("car|bike") | nouns("airplane|helicopter"),
        kinds("boat")
        | nouns("flying saucer|man cycling|man rowing a boat|person in a wheelchair|parachutist"),
    ),
    "boat": (kinds("boat"), nouns("man rowing a boat")),
    "fruit": (
        kinds("fruit") - nouns("carrot|ear of corn|pumpkin"),
        nouns("ear of corn|pumpkin"),
    ),
    "musical instrument": (kinds("music") - nouns("microphone"), nouns("microphone")),
    "tool": (
        nouns("hammer|wrench|saw|axe"),
        kinds("tool|dish") - nouns("hammer|wrench|saw|axe") | kinds("worker"),
    ),
    "ball": (
        nouns("soccer ball|basketball|baseball|American football"),
        nouns("man dribbling a basketball|man juggling|tennis racket|man playing golf|yo-yo"),
    ),
}
COUNTED = {"animal": "animals", "person": "people", "vehicle": "vehicles", "boat": "boats", "ball": "balls"}
# Emoji whose shorter side is less than half of the longer, and thin diagonal ones: the box says little about
# their size.
THIN = nouns("candle|speedboat|man walking|race car|traffic light|broom|spoon|kitchen knife|hammer")
ZONE = {noun(name): entry.zone for name, entry in LEXICON.items()}
NOUNS = sorted(ZONE)


def possible(text, landmarks):
    """The nouns that a setting of these kinds and landmarks can show."""
    return kinds("|".join(text)) | {noun(name) for name in landmarks}


POSSIBLE = {
    name: possible(split(row["kinds"]), filter(None, split(row["landmarks"])))
    for name, row in TABLES["settings"].items()
}
