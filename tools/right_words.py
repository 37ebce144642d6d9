"""How often are the words of `apps.video watch` right? Counted on demo videos of the drawn archive.

    python -m tools.right_words --videos 20

A segment's words are the nearest training caption, which names things of vocabulary.json. What is there is
what the five captions of the scene name that is on screen in the middle of the segment. The second row has
the words of the next segment, which are right by luck alone, the third the nearest caption of the scene as a
still image. Intervals are 95 % intervals of a bootstrap over videos."""

import re
import sys
import tempfile
from functools import cache
from pathlib import Path

from models import script

ROWS = ("words of the segment", "words of the next segment", "words of the still image")
COLUMNS = ("something named is there", "all that is named is there", "segments")


@cache
def forms():
    """{name of a thing: the phrases that captions use for one or several of it}."""
    from tools.draw_archive.captions import plural
    from tools.draw_archive.vocabulary import LEXICON

    found = {
        name: [form(word).lower() for word in entry.words for form in (str, plural)]
        for name, entry in LEXICON.items()
    }
    found["person hanging"] = [
        "hang",
        "hanging",
        "dangling",
        "cable",
    ]  # its captions are sentences of their own
    return found


def things(text):
    """The names of the things that a caption mentions: {"dog", "ball"}, whichever synonym it uses."""
    said = f" {re.sub('[^a-z -]', '', text.lower())} "
    return {name for name, phrases in forms().items() if any(f" {phrase} " in said for phrase in phrases)}


def judge(said, there):
    """[something named is there, all that is named is there, 1] of the words of one segment."""
    named = things(said)
    return [float(bool(named & there)), float(bool(named) and named <= there), 1.0]


def watch(model, write, names, dataset, seed, seconds):
    """Make and watch one video of the images `names`. Returns the sums of `judge` for each of ROWS, (3, 3)
    float64."""
    import torch

    from apps.video.__main__ import CHANGE
    from apps.video.demo import make, plan
    from apps.video.segments import cut, means, middles, ward
    from apps.video.watch import whole_video
    from models.dataset import open_image

    shots = plan(seconds, seed)
    images = [open_image(dataset.path(dataset.image_names.index(name))) for name in names[: len(shots)]]
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder, "video.mp4"), images, shots)
        times, rows = whole_video(Path(folder, "video.mp4"), model.encode_image, 0.5, quiet=True)
    order, heights = ward(rows)
    edges = cut(order, 1 + int((heights * 0.5**0.5 > CHANGE).sum()))
    said = [words for _, words in write(means(rows, edges))]
    still = [words for _, words in write(model.encode_image(images).cpu())]
    sums = torch.zeros(3, 3, dtype=torch.double)
    for i, middle in enumerate(middles(edges).tolist()):
        shot = next(s for s, shot in enumerate(shots) if times[middle] < shot.end)
        captions = [row.text for row in dataset.rows if row.image_name == names[shot]]
        there = set().union(*map(things, captions))
        other = said[(i + 1) % len(said)]
        sums += torch.tensor([judge(words, there) for words in (said[i], other, still[shot])])
    return sums


def work(args):
    """Print the table."""
    import random

    import torch

    from apps.video.demo import plan
    from apps.video.watch import writer
    from models.metrics import bootstrap
    from models.vljepa import VLJEPA

    model = VLJEPA.load(args.run, args.device)
    write, source = writer(model, "nearest", None, args.cache)
    dataset = model.held_out("caption.csv")
    held_out = sorted({row.image_name for row in dataset.rows})
    counted = []
    for seed in range(args.videos):
        names = random.Random(seed).sample(held_out, len(plan(args.seconds, seed)))
        counted.append(watch(model, write, names, dataset, seed, args.seconds))
    per_video = torch.stack(counted)  # (V, 3, 3)
    print(f"{args.videos} videos of {args.seconds:g} s, {len(held_out)} held-out images; words: {source}")
    print(" | ".join(["", *COLUMNS]))
    for i, row in enumerate(ROWS):
        sums = per_video[:, i]  # (V, 3)
        share = 100 * sums.sum(0)[:2] / sums.sum(0)[2]
        low, high = bootstrap(sums, lambda totals: 100 * totals[:, :2] / totals[:, 2:])
        cells = [f"{a:.1f} ({b:.1f} to {c:.1f})" for a, b, c in zip(share.tolist(), low, high)]
        print(" | ".join([row, *cells, f"{sums[:, 2].sum():.0f}"]), flush=True)


def main(argv=None):
    """Return the exit code, see models.script."""
    p = script.parser("python -m tools.right_words", __doc__)
    script.add_model_flags(p)
    p.add_argument("--videos", type=int, default=20, help="videos to make (default %(default)s)", metavar="N")
    p.add_argument("--seconds", type=float, default=60.0, help="length of each (default %(default)s)")
    p.add_argument("--cache", default=".cache/features.sqlite", help="feature cache (default %(default)s)")
    args = p.parse_args(argv)
    return script.run("right_words", lambda: work(args), args.quiet)


if __name__ == "__main__":
    sys.exit(main())
