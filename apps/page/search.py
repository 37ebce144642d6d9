"""Search the indexed folder.

found = search(loaded, ["a dog"], without=["snow"], least=0.3)    # Found([Result, ...], best, images)
found = like(loaded, "holiday/a.jpg")                             # by an image of the index
large(loaded, "holiday/a.jpg")                                    # RGB PIL image
"""

import os
from typing import NamedTuple

from apps.search.duplicates import folded
from apps.search.find import find
from apps.search.sheets import named, thumbnails
from apps.search.store import opened
from models.files import printable, relative

TILE, LARGE = 360, 1280  # pixels: the longer side of a result in the gallery, and of the one looked at
SPARE = 4  # times as many results are found as are shown, since near-duplicates fold into one


class Result(NamedTuple):
    score: float  # cosine
    name: str  # below the indexed folder
    alike: list  # names of its near-duplicates
    at: float | None  # of a video, the second at which its best frame is shown


class Found(NamedTuple):
    results: list  # of Result, best first
    best: float  # the highest score, whether it is shown or not
    images: int  # in the index


def search(loaded, texts, without=(), image=None, least=-1.0, top=12):
    """The `top` best images that score `least` or more, as Found. Raises what `opened` and `find` do, and
    ValueError where there is nothing to search for."""
    if not texts and not image:
        raise ValueError("search for what? give a text or an image")
    with opened(loaded.index) as store:
        options = dict(image=image, without=without, top=SPARE * top, run=loaded.run, model=loaded.model)
        results, _, times = find(store, texts, **options)
        kept = folded(store, [(score, path) for score, path in results if score >= least])
        shown = [
            Result(
                score,
                relative(path, store.root),
                [relative(other, store.root) for other in alike],
                times.get(path),
            )
            for score, path, alike in kept[:top]
        ]
        return Found(shown, results[0][0], store.count())


def like(loaded, name, least=-1.0, top=12):
    """The images most like one of the index, as `search` returns them. Raises as `path_of` does."""
    return search(loaded, [], image=path_of(loaded, name), least=least, top=top)


def path_of(loaded, name):
    """The path of an image of the index. ValueError for any other name."""
    with opened(loaded.index) as store:
        return store.paths([store.number(name)])[0]


def large(loaded, name):
    """An image of the index as an RGB PIL image of at most LARGE pixels on a side."""
    return thumbnails([path_of(loaded, name)], LARGE)[0]


def tiles(loaded, results):
    """[(RGB PIL image, caption)] of the results, for a gallery."""
    with opened(loaded.index) as store:
        times = {os.path.join(store.root, result.name): result.at for result in results}
        images = thumbnails(list(times), TILE, times)
    return [(image, caption(result)) for image, result in zip(images, results)]


def caption(result):
    """The line below a result."""
    alike = f" (and {len(result.alike)} like it)" if result.alike else ""
    return f"{result.score:.2f}  {named(printable(result.name), result.at)}{alike}"


def examples(loaded, count=6):
    """Some images of the index as RGB PIL images, evenly spaced; those that the run was not trained on, where
    it names its training images."""
    with opened(loaded.index) as store:
        names = sorted(relative(os.fsdecode(path), store.root) for path in store.all_paths())
        if loaded.model.knows_training_images:
            names = [name for name in names if name not in loaded.model.trained_on] or names
        names = names[:: max(1, len(names) // count)][:count]
        return thumbnails([os.path.join(store.root, name) for name in names], LARGE)
