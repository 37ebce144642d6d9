"""What one image or clip shows.

    frames = read("photo.jpg")                          # a list of upright RGB PIL images; an image has one
    seen = look(loaded, frames, ["a dog", "a cat"])     # Seen(labels=[("a dog", 0.4), ...], ...)
    ask(loaded, frames, "What color is it?")            # [("red", 0.9), ...]
    heat(loaded, frames, "a dog", "map.png")

Of a clip, labels and captions are those of all its frames together. Questions and heat maps are about the
frame in the middle."""

from typing import NamedTuple

from apps.attention.panels import draw, of_questions, of_texts
from apps.page.loaded import mean_row
from models.dataset import FRAMES, open_clip, open_image
from models.rejection import NONE

ANSWERS = 5


class Seen(NamedTuple):
    labels: list  # [(text, cosine)], best first, with NONE before those that score too little
    captions: list  # [(text, cosine)] of the nearest training captions, or the reason why there are none
    sentence: str  # of the decoder; empty where none was trained


def read(path, is_clip=False):
    """The image at `path`, or FRAMES frames of a clip, evenly spaced, as a list of upright RGB PIL images.
    Raises what `open_image` and `open_clip` do."""
    if not is_clip:
        return [open_image(path)]
    return [image for _, image in open_clip(path, FRAMES)]


def middle(frames):
    """The frame that questions and heat maps are about."""
    return frames[len(frames) // 2]


def look(loaded, frames, labels, least):
    """The Seen of some frames. NONE is the first label where the best one scores less than `least`."""
    model = loaded.model
    row = mean_row(model.encode_image(frames))  # (Dt,)
    scores = (model.encode_text(labels) @ row).tolist() if labels else []
    try:
        captions = loaded.nearest(row)
    except ValueError as error:  # of a shared model, which has no captions
        captions = [(str(error), 0.0)]
    sentence = loaded.decoder.write(row[None].cpu(), encode=model.encode_text)[0] if loaded.decoder else ""
    return Seen(ranked(labels, scores, least), captions, sentence)


def ask(loaded, frames, question):
    """[(answer, cosine)]: the ANSWERS best answers, best first. ValueError for a run that was trained without
    questions."""
    model = loaded.model
    model.check_answers()
    scores = model.answer_scores(middle(frames), [question])[0, 0].tolist()
    return ranked(list(model.config["answers"]), scores)[:ANSWERS]


def ranked(texts, scores, least=-1.0):
    """[(text, score)], best first; NONE, with the score that was asked for, before those below `least`."""
    found = sorted(zip(texts, scores), key=lambda pair: -pair[1])
    return [(NONE, least), *found] if found and found[0][1] < least else found


def heat(loaded, frames, text, path, is_question=False):
    """Write a PNG: where the model looked for the answer to a question, or what a text's score comes from."""
    image = middle(frames)
    find = of_questions if is_question else of_texts
    draw(image, find(loaded.model, image, [text]), path)
