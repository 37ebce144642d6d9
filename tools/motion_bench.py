"""Which way things move: runs that read the mean of a video's frames against runs that read how they change.

    python -m tools.draw_archive --videos 1500 --out drawn/train
    python -m tools.draw_archive --videos 1000 --seed 1 --out drawn/test
    python train.py --csv drawn/train/captions.csv --images drawn/train --vision efficientnet-lite0-layout \\
        --recipe retrieval --val-fraction 0 --run runs/change --time change
    python -m tools.motion_bench drawn/test --seed 1 --runs runs/mean runs/change

Direction: whether a video is nearer to "a dog moves left" than to "a dog moves right", over every thing that
moves, comes in, goes out, grows or shrinks. Each video is scored beside its reverse, so who sees no order is
right half of the time. All drawn with another seed than the training videos. docs/video.md has the results.
"""

import sys
from pathlib import Path

from models import script

AXES = dict(left="left, right", up="up, down", grow="bigger, smaller") | {"in": "in, out"}
AXES |= dict(right=AXES["left"], down=AXES["up"], shrink=AXES["grow"], out=AXES["in"])


def parse(argv):
    """The command line."""
    p = script.parser("python -m tools.motion_bench", __doc__)
    p.add_argument("videos", type=Path, help="folder that tools.draw_archive --videos wrote", metavar="DIR")
    p.add_argument("--seed", type=int, default=0, help="with which it wrote them (default %(default)s)")
    p.add_argument("--runs", nargs="+", default=["runs/default"], help="run folders", metavar="RUN")
    p.add_argument("--cache", default=".cache/features.sqlite", help="file of the towers' outputs")
    script.add_frames(p)
    script.add_quiet(p)
    return p.parse_args(argv)


def questions(clips):
    """[(number of the clip, axis, has it one thing, true sentence, the opposite), ...] of what moves."""
    from tools.draw_archive.captions import article
    from tools.draw_archive.motion import REVERSED
    from tools.draw_archive.video_words import SAYS

    found = []
    for number, clip in enumerate(clips):
        for mover in clip.movers:
            if mover.motion in AXES:
                both = (SAYS[motion][0].split("|")[0] for motion in (mover.motion, REVERSED[mover.motion]))
                said = (f"{article(mover.name)} {says}" for says in both)
                found.append((number, AXES[mover.motion], len(clip.movers) == 1, *said))
    return found


def share(asked, right, keep):
    """'93.1 (91.0 to 95.2)': percent right and the 95 % interval of the questions under `keep`, over pairs of
    a video and its reverse."""
    import torch

    from models.metrics import interval

    pairs = torch.tensor([number // 2 for (number, *_), kept in zip(asked, keep) if kept])
    hits = torch.tensor([hit for hit, kept in zip(right, keep) if kept], dtype=torch.double)
    if not len(pairs):
        return "none"
    _, pairs = pairs.unique(return_inverse=True)
    trials = pairs.bincount()
    low, high = interval(torch.zeros(len(trials), dtype=torch.double).index_add(0, pairs, hits), trials)
    return f"{100 * hits.mean():.1f} ({100 * low:.1f} to {100 * high:.1f})"


def directions(name, model, clips, predicted):
    """Yield the rows of the table of one run: one thing, several things."""
    asked = questions(clips)
    texts = sorted({text for *_, true, opposite in asked for text in (true, opposite)})
    rows = dict(zip(texts, model.encode_text(texts).cpu()))
    margins = [(predicted[number] @ (rows[true] - rows[other])).item() for number, *_, true, other in asked]
    right = [margin > 0 for margin in margins]
    # A video and its reverse are asked about the same things in the same order, the sentences swapped: an
    # answer flips with the order where both are right or both are wrong.
    of_clip = [[hit for (number, *_), hit in zip(asked, right) if number == i] for i in range(len(clips))]
    flipped = [one == other for i in range(len(clips)) for one, other in zip(of_clip[i], of_clip[i ^ 1])]
    for what, one in (("one thing", True), ("several", False)):
        cells = [
            share(asked, right, [(axis, alone) == (column, one) for _, axis, alone, *_ in asked])
            for column in dict.fromkeys(AXES.values())
        ]
        cells.append(share(asked, flipped, [alone == one for _, _, alone, *_ in asked]))
        yield f"{name}, {what}", cells


def work(args):
    """Print both tables."""
    from models import metrics, report
    from models.dataset import VisionTextDataset
    from models.features import encode_archive
    from models.vljepa import VLJEPA
    from tools.draw_archive.motion import pair

    dataset = VisionTextDataset(args.videos / "captions.csv", None, args.videos)
    clips = [clip for index in range(len(dataset.image_names) // 2) for clip in pair(index, args.seed)]
    if [clip.name for clip in clips] != dataset.image_names:
        raise ValueError(f"{args.videos}: not the videos of --seed {args.seed}; give the seed they have")
    table, retrieval = [], [report.retrieval_header()]
    for run in args.runs:
        model = VLJEPA.load(run)
        frames = args.frames or model.frames
        options = dict(quiet=args.quiet, frames=frames, in_order=model.reads_order)
        features = encode_archive(dataset, model.vision, model.text, args.cache, **options)
        predicted, text = model.predict(features.image).cpu(), model.project_text(features.text).cpu()
        ranks = metrics.ranks(predicted, text, features.image_of)
        retrieval.append(report.retrieval_row(run, metrics.summary(*ranks)))
        retrieval += report.interval_rows(metrics.intervals(*ranks, features.image_of))
        table += directions(run, model, clips, predicted)
    print(f"{args.videos}: {len(clips)} videos; right in percent (95 % interval)")
    print(
        f"{'':32} | " + " | ".join(f"{axis:20}" for axis in (*dict.fromkeys(AXES.values()), "reverse flips"))
    )
    for name, cells in table:
        print(f"{name:32} | " + " | ".join(f"{cell:20}" for cell in cells))
    print("\n".join(retrieval))


def main(argv=None):
    """Exit code: 0 done, 1 failed, 130 interrupted; argparse itself exits with 2 on wrong usage."""
    args = parse(argv)
    return script.run("motion_bench", lambda: work(args), args.quiet)


if __name__ == "__main__":
    sys.exit(main())
