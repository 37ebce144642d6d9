"""How many decodes does selective decoding save at equal quality?

    python -m tools.video_bench --csv dev.csv --images photos --run runs/f8k --plot selective.png
    python -m tools.video_bench --videos 3          on images of the drawn archive that were held out

The videos show captioned photographs that the run was not trained on, 2 to 12 s each under a moving camera,
with cuts and dissolves. All systems share frames, embeddings and the source of words; they differ in which
embeddings they decode. "Placed" decodes when that answers the frames best by their embeddings
(apps.video.segments.place): the mean of the frames that it answers. Each frame then gets the words of one
decode: the nearest in time (VL-JEPA, Chen et al., arXiv 2512.10942, section 4.6) or, in rows called "own
segment", that of the segment it lies in, as apps.video prints it. For uniform decoding the two are the same.
The words are scored against the captions of the photograph on screen, by CIDEr-D and by the text tower's
cosine. A budget is a number of decodes per minute, counted over all videos together. Two runs on one machine
print the same numbers."""

import math
import random
import re
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models import script

BUDGETS = (2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 60, 120)  # decodes per minute; 120 is every frame by default
REPORTED = (6, 8, 10, 12)  # budgets whose saving is printed; the videos change shot 8 times per minute
SETTLE = 3.0  # seconds of a streamed segment before its words are written, as in apps.video
DRAWS = 1000  # of the bootstrap over videos
# Thresholds of streaming, 0.3 to 6.4, in the units of apps.video --change.
CHANGES = tuple(0.3 * 1.12**i for i in range(28))
PRICES = tuple(0.05 * 1.5**i for i in range(13))  # of a decode, for `place`
METRICS = {"CIDEr-D": 1, "cosine": 2}  # rows of the array that `measure` returns for a system
UNIFORM = ("uniform, middle frame", "uniform, mean")
SELECTIVE = ("selective, middle frame", "selective, mean", "placed, mean", "selective, mean, own segment")
STREAMING = ("streaming", "streaming, own segment")
SYSTEMS = UNIFORM + SELECTIVE + STREAMING


class Setting(NamedTuple):
    """One system at one setting, on one video of F frames."""

    rows: object  # (S, Dt) unit rows to decode
    answer: object  # (F,) int64: the decode that answers each frame
    wait: float = 0.0  # mean seconds from a segment's first frame to its words


def parse(argv):
    """The command line."""
    p = script.parser("python -m tools.video_bench", __doc__)
    add = p.add_argument
    add("--csv", default="caption.csv", help="captions file (default %(default)s)")
    add("--images", default="my_image_archive", help="folder of its images (default %(default)s)")
    add("--videos", type=int, default=12, help="videos to make (default %(default)s)", metavar="N")
    add("--minutes", type=float, default=2.0, help="length of each (default %(default)s)")
    add("--every", type=float, default=0.5, help="seconds between frames (default %(default)s)")
    words_help = "nearest training caption, or RUN/decoder's sentence (default %(default)s)"
    add("--words", choices=("nearest", "decoder"), default="nearest", help=words_help)
    seed_help = "chooses photographs, shots, camera, bootstrap (default %(default)s)"
    add("--seed", type=int, default=0, help=seed_help)
    add("--plot", help="draw quality against decodes into this PNG", metavar="FILE.png")
    add("--cache", default=".cache/features.sqlite", help="feature cache, for captions (default %(default)s)")
    script.add_model_flags(p)
    args = p.parse_args(argv)
    for name, least in (("videos", 1), ("minutes", 0.1), ("every", 0.05)):
        if not least <= getattr(args, name) < 10_000:
            p.error(f"--{name} {getattr(args, name)}: give {least} or more")
    if args.plot and not args.plot.endswith(".png"):
        p.error(f"--plot {args.plot}: give a name that ends in .png")
    return args


def make_videos(args, model, dataset):
    """[(rows (F, Dt), names of the images on screen (F,))] of each video, read back from a file. ValueError
    when the held-out images of `dataset` are too few."""
    from tqdm import tqdm

    from apps.video.demo import make, plan
    from apps.video.watch import whole_video
    from models.dataset import image_path, open_image

    names = sorted(dataset.image_names)
    random.Random(args.seed).shuffle(names)
    plans = [plan(60 * args.minutes, f"{args.seed}/{i}") for i in range(args.videos)]
    count = sum(map(len, plans))
    if len(names) < count:
        need = f"{args.videos} videos need {count}; give fewer --videos or --minutes"
        raise ValueError(f"{args.csv}: {len(names)} images that {args.run} was not trained on, and {need}")
    videos, unused = [], iter(names)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "video.mp4")
        for shots in tqdm(plans, desc="videos", unit="", disable=args.quiet):
            used = [next(unused) for _ in shots]
            make(path, [open_image(image_path(args.images, name)) for name in used], shots)
            times, rows = whole_video(path, model.encode_image, args.every, quiet=True)
            ends = [shot.end for shot in shots[:-1]]
            videos.append((rows, [used[int(np.searchsorted(ends, time, side="right"))] for time in times]))
    frames = sum(len(rows) for rows, _ in videos)
    print(f"{args.videos} videos of {args.minutes:g} min, {count} shots, {frames} frames")
    return videos


def least_heights(args, heights):
    """For each budget, the Ward distance that leaves that many segments in all videos together; `heights`
    holds the distances of each video."""
    pooled = sorted((height for video in heights for height in video.tolist()), reverse=True)
    segments = [round(budget * args.minutes * args.videos) for budget in BUDGETS]
    kept = [min(max(count - args.videos, 0), len(pooled)) for count in segments]  # boundaries
    return [pooled[count - 1] if count else math.inf for count in kept]


def nearest_decode(edges):
    """(F,) int64: the segment whose middle is nearest to each frame in time; `edges` (S + 1,)."""
    return nearest((edges[:-1] + edges[1:] - 1) / 2, int(edges[-1]))


def nearest(times, count):
    """(count,) int64: which of `times` (S,) is nearest to each frame."""
    import torch

    return (torch.arange(count)[:, None] - times).abs().argmin(1)


def placed(rows, price):
    """The Setting of decodes at the times that `place` finds."""
    import torch
    import torch.nn.functional as F

    from apps.video.segments import place

    answer = nearest(place(rows, price), len(rows))
    sums = torch.zeros(int(answer.max()) + 1, rows.shape[1]).index_add_(0, answer, rows)
    return Setting(F.normalize(sums, dim=-1), answer)


def sweep(args, rows, tree, least):
    """{system: [Setting, ...]} of a video: one per budget, for streaming one per threshold. `rows` (F, Dt),
    `tree` from `ward(rows)`, `least` from `least_heights`."""
    import torch

    from apps.video import segments

    found = defaultdict(list)
    order, heights = tree
    for budget, height in zip(BUDGETS, least):
        even = segments.uniform(len(rows), round(budget * args.minutes))
        chosen = segments.cut(order, 1 + int((heights >= height).sum()))
        for name, edges in (("uniform", even), ("selective", chosen)):
            middles, means = rows[segments.middles(edges)], segments.means(rows, edges)
            found[f"{name}, middle frame"].append(Setting(middles, nearest_decode(edges)))
            found[f"{name}, mean"].append(Setting(means, nearest_decode(edges)))
        found["selective, mean, own segment"].append(Setting(means, torch.repeat_interleave(chosen.diff())))
    found["placed, mean"] = [placed(rows, price) for price in PRICES]
    settle = max(1, math.ceil(SETTLE / args.every))
    for change in CHANGES:
        decodes = list(segments.stream(rows, change / args.every**0.5, settle))
        edges = torch.tensor([decode.start for decode in decodes] + [len(rows)])
        said = torch.stack([decode.row for decode in decodes])
        wait = args.every * sum(decode.now - decode.start for decode in decodes) / len(decodes)
        found["streaming"].append(Setting(said, nearest_decode(edges), wait))
        found["streaming, own segment"].append(Setting(said, torch.repeat_interleave(edges.diff()), wait))
    return found


def write(args, model, rows):
    """The words for rows (R, Dt), a list of R texts. Equal rows are decoded once."""
    import torch

    from apps.video.watch import writer

    distinct, back = torch.unique(rows, dim=0, return_inverse=True)
    words, name = writer(model, args.words, Path(args.run, "decoder"), args.cache)
    said = [text for part in distinct.split(1024) for _, text in words(part)]
    print(f"{len(distinct)} distinct decodes; words: {name}")
    return [said[i] for i in back.tolist()]


def tokens(text):
    """Lower case; runs of letters and digits with apostrophes inside. The Penn Treebank tokeniser needs
    Java."""
    return " ".join(re.findall(r"[^\W_]+(?:['’][^\W_]+)*", text.lower()))


def cider(pairs, captions):
    """{(image name, text): CIDEr-D} for a set of such pairs. Document frequencies come from all `captions`
    {name: [text, ...]}."""
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    references = {name: [tokens(text) for text in texts] for name, texts in captions.items()}
    corpus = CiderScorer()
    for texts in references.values():
        corpus += ("", texts)
    corpus.compute_doc_freq()
    pairs = sorted(pairs)
    scores = {}
    for i in range(0, len(pairs), len(references)):
        chunk = pairs[i : i + len(references)]
        scorer = CiderScorer()
        # The scorer takes its number of pairs for the corpus size, so a short chunk is filled up.
        padding = pairs[:1] * (len(references) - len(chunk))
        for name, text in chunk + padding:
            scorer += (tokens(text), references[name])
        scorer.document_frequency = corpus.document_frequency
        scores |= zip(chunk, scorer.compute_cider())
    return scores


def cosine(pairs, captions, model):
    """{(image name, text): the text's mean cosine with the captions of the image} for a set of such pairs."""
    texts = sorted({text for _, text in pairs})
    said = dict(zip(texts, model.encode_text(texts).cpu()))
    truth = {
        name: model.encode_text(captions[name]).cpu().mean(0) for name in sorted({name for name, _ in pairs})
    }
    return {(name, text): float(truth[name] @ said[text]) for name, text in sorted(pairs)}


def measure(args, model, videos, captions):
    """{system: (4, settings, videos) float64}: decodes per minute, CIDEr-D, cosine, and mean seconds from a
    segment's first frame to its words."""
    import torch

    from apps.video.segments import ward

    trees = [ward(rows) for rows, _ in videos]
    least = least_heights(args, [heights for _, heights in trees])
    sweeps = [sweep(args, rows, tree, least) for (rows, _), tree in zip(videos, trees)]
    settings, places = [], []  # every Setting, and (system, its number, video)
    for video, by_system in enumerate(sweeps):
        for system in SYSTEMS:
            for number, setting in enumerate(by_system[system]):
                settings.append(setting)
                places.append((system, number, video))
    texts = iter(write(args, model, torch.cat([setting.rows for setting in settings])))
    answers = []  # of each setting, the (image name on screen, words) of each frame
    for setting, (_, _, video) in zip(settings, places):
        said = [next(texts) for _ in setting.rows]
        names = videos[video][1]
        answers.append([(name, said[i]) for name, i in zip(names, setting.answer.tolist())])
    distinct = {pair for answer in answers for pair in answer}
    scores = (cider(distinct, captions), cosine(distinct, captions, model))
    found = {system: np.zeros((4, len(sweeps[0][system]), len(videos))) for system in SYSTEMS}
    for setting, (system, number, video), answer in zip(settings, places, answers):
        decodes = len(setting.rows) / args.minutes
        quality = [np.mean([score[pair] for pair in answer]) for score in scores]
        found[system][:, number, video] = decodes, *quality, setting.wait
    return found


def curve(found, metric, videos, systems):
    """(decodes per minute, quality), both (settings,), ascending in decodes: means over `videos` (indices,
    repeats allowed), of the best of `systems` at each setting."""
    decodes = found[systems[0]][0][:, videos].mean(1)
    quality = np.max([found[system][metric][:, videos].mean(1) for system in systems], axis=0)
    order = np.argsort(decodes, kind="stable")
    return decodes[order], quality[order]


def curves(args, found, metric, systems):
    """The curve of all videos, and a list of those of DRAWS bootstrap draws of videos. Every call makes the
    same draws, so the curves of two systems are paired."""
    chance = np.random.default_rng(args.seed)
    draws = [chance.integers(args.videos, size=args.videos) for _ in range(DRAWS)]
    whole = curve(found, metric, np.arange(args.videos), systems)
    return whole, [curve(found, metric, draw, systems) for draw in draws]


def quality_at(budget, decodes, quality):
    """Quality of a curve at a budget, interpolated over log decodes; NaN outside the curve."""
    return float(np.interp(np.log(budget), np.log(decodes), quality, left=np.nan, right=np.nan))


def needed(quality, decodes, reached):
    """The fewest decodes per minute at which a curve reaches a quality, interpolated over log decodes;
    infinite if it never does."""
    best = np.maximum.accumulate(reached)
    i = int(np.searchsorted(best, quality))  # the first setting that reaches it
    if i == len(best):
        return np.inf
    if i == 0:
        return float(decodes[0])
    share = (quality - best[i - 1]) / (best[i] - best[i - 1])
    return float(np.exp(np.log(decodes[i - 1]) * (1 - share) + np.log(decodes[i]) * share))


def savings(uniform, own, budget=None):
    """How many times the decodes of a system the uniform curve needs for the same quality; curves as from
    `curve`.

    At a `budget` of the system, or (None) where the system reaches what uniform has at one decode per second,
    as the paper's 2.85 is meant. Infinite if uniform never gets there, 0 if the system does not, NaN if the
    budget lies outside the system's sweep."""
    if budget is None:
        return 60 / needed(quality_at(60, *uniform), *own)
    quality = quality_at(budget, *own)
    return np.nan if np.isnan(quality) else needed(quality, *uniform) / budget


def report(args, found):
    """Print quality against budget for every system, then how many decodes uniform needs for the same
    quality."""
    videos = np.arange(args.videos)
    for name, metric in METRICS.items():
        heads = "".join(f"{budget:>7}" for budget in BUDGETS)
        print(f"\n{f'{name} x 100':31}{heads}  decodes per minute")
        for system in SYSTEMS:
            values = [100 * quality_at(budget, *curve(found, metric, videos, [system])) for budget in BUDGETS]
            print(
                f"{system:31}"
                + "".join("      -" if np.isnan(value) else f"{value:7.1f}" for value in values)
            )
    wait = quality_at(8, *curve(found, 3, videos, ["streaming"]))
    print(
        f"streaming writes {wait:.1f} s after a segment's first frame (mean at 8 decodes per minute); ",
        end="",
    )
    print("selective when the video has ended")
    heads = [*(f"{budget} per minute" for budget in REPORTED), "its 60 per minute"]
    for name, metric in METRICS.items():
        print(f"\n{'decodes uniform needs for the':31}" + "".join(f"{head:>23}" for head in heads))
        print(f"{f'same {name}, as multiple':31}" + f"{'(95 % interval)':>23}" * len(heads))
        uniform = curves(args, found, metric, UNIFORM)
        for system in SELECTIVE + STREAMING:
            own = curves(args, found, metric, [system])
            print(f"{system:31}" + "".join(f"{saved(uniform, own, b):>23}" for b in (*REPORTED, None)))


def saved(uniform, own, budget):
    """The cell of a table: the savings of a system, and their 95 % interval; arguments as from `curves`."""
    value = savings(uniform[0], own[0], budget)
    if np.isnan(value):
        return "-"
    drawn = [savings(*pair, budget) for pair in zip(uniform[1], own[1])]
    ends = np.nanpercentile(drawn, (2.5, 97.5), method="nearest")
    most = f">{BUDGETS[-1] / budget:.0f}" if budget else "inf"
    value, low, high = ("never" if x == 0 else most if np.isinf(x) else f"{x:.1f}" for x in (value, *ends))
    return f"{value} ({low} - {high})"


def plot(args, found):
    """Draw CIDEr-D and cosine against decodes, each curve with its 95 % interval."""
    from matplotlib.figure import Figure

    from models.files import replacing

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    lines = (
        (UNIFORM, "uniform, better of middle and mean", "-"),
        (["selective, mean, own segment"], "selective (Ward)", "-"),
        (["streaming, own segment"], "streaming, no look-ahead", "-"),
        (["selective, mean"], "selective, answered by the nearest in time", "--"),
    )
    for (name, metric), axis in zip(METRICS.items(), figure.subplots(1, 2)):
        for systems, label, style in lines:
            (decodes, quality), others = curves(args, found, metric, systems)
            shown = (decodes >= BUDGETS[0]) & (decodes <= BUDGETS[-1])
            (line,) = axis.plot(decodes[shown], 100 * quality[shown], style, label=label)
            drawn = [[100 * quality_at(x, *other) for x in decodes[shown]] for other in others]
            low, high = np.nanpercentile(drawn, (2.5, 97.5), axis=0)
            axis.fill_between(decodes[shown], low, high, color=line.get_color(), alpha=0.12, linewidth=0)
        ends = (BUDGETS[0], BUDGETS[-1])
        axis.set(xscale="log", xlabel="decodes per minute", ylabel=f"{name} x 100", xlim=ends)
        axis.set_xticks(BUDGETS[::2], BUDGETS[::2])
        axis.minorticks_off()
    axis.legend(loc="lower right", fontsize=8)
    with replacing(args.plot) as new:
        figure.savefig(new, dpi=110, format="png")
    print(f"plot in {args.plot}")


def bench(args):
    """Make the videos, measure, and print."""
    from models.vljepa import VLJEPA

    model = VLJEPA.load(args.run, args.device)
    dataset = model.held_out(args.csv, args.images, "image_name", "comment")
    captions = defaultdict(list)
    for row in dataset.rows:
        captions[row.image_name].append(row.text)
    found = measure(args, model, make_videos(args, model, dataset), captions)
    report(args, found)
    if args.plot:
        plot(args, found)


def main(argv=None):
    """Return the exit code, see models.script."""
    args = parse(argv)
    return script.run("video_bench", lambda: bench(args), args.quiet)


if __name__ == "__main__":
    sys.exit(main())
