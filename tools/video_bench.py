"""How many decodes does selective decoding save at equal quality?

    python -m tools.video_bench --csv dev.csv --images photos --run runs/f8k --plot selective.png
    python -m tools.video_bench --films 3                               on pictures of the drawn archive that were held out

Makes films of photographs with known captions (each held 2 to 12 s under a moving camera, cuts and dissolves), reads them back, and
decodes them with the same frames, embeddings and source of words for every system; systems differ in what they decode. Every frame is
answered by the decode nearest to it in time (VL-JEPA, Chen et al., arXiv 2512.10942, section 4.6) or, "own segment", by that of the
segment it lies in, as apps.video prints it; the two are one for uniform. Answers are scored against the captions of the photograph on
screen, by CIDEr-D and by the text tower's cosine. A budget is a number of decodes a minute, met over all films together.
Pictures the run was trained on are left out.
"""

import argparse
import math
import random
import re
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

BUDGETS = (
    2,
    3,
    4,
    5,
    6,
    8,
    10,
    12,
    15,
    20,
    30,
    60,
    120,
)  # decodes a minute; 120 is every frame of --every 0.5
REPORTED = (6, 8, 10, 12)  # budgets at which the saving is printed; the films change shot 8 times a minute
SETTLE = 3.0  # seconds a streamed segment is watched before its words, as in apps.video
DRAWS = 1000  # of the bootstrap over films
CHANGES = tuple(
    0.3 * 1.12**i for i in range(28)
)  # thresholds of the streaming sweep, 0.3 to 6.4; units as apps.video's --change
METRICS = ((1, "CIDEr-D"), (2, "cosine"))  # where `measure` puts them
UNIFORM = ("uniform, middle frame", "uniform, mean")
SYSTEMS = (
    *UNIFORM,
    "selective, middle frame",
    "selective, mean",
    "selective, mean, own segment",
    "streaming",
    "streaming, own segment",
)


def parse(argv):
    """The command line."""
    p = argparse.ArgumentParser(
        "python -m tools.video_bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--csv", default="caption.csv", help="captions file with image_name and comment (default %(default)s)"
    )
    p.add_argument(
        "--images",
        default="my_image_archive",
        help="folder of its images (default %(default)s)",
        metavar="DIR",
    )
    p.add_argument(
        "--run", default="runs/default", help="run folder of train.py, or a checkpoint (default %(default)s)"
    )
    p.add_argument("--films", type=int, default=12, help="films to make (default %(default)s)", metavar="N")
    p.add_argument(
        "--minutes", type=float, default=2.0, help="length of each (default %(default)s)", metavar="MINUTES"
    )
    p.add_argument(
        "--every",
        type=float,
        default=0.5,
        help="seconds from frame to frame (default %(default)s)",
        metavar="S",
    )
    p.add_argument(
        "--words",
        choices=("nearest", "decoder"),
        default="nearest",
        help="nearest training caption, or RUN/decoder's sentence (default %(default)s)",
    )
    p.add_argument(
        "--seed",
        type=int,
        default=0,
        help="chooses photographs, shots, camera, bootstrap (default %(default)s)",
    )
    p.add_argument("--plot", help="draw quality against decodes into this PNG", metavar="FILE.png")
    p.add_argument(
        "--cache",
        default=".cache/features.sqlite",
        help="file that keeps the captions' embeddings (default %(default)s)",
    )
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default %(default)s)")
    p.add_argument("--quiet", action=argparse.BooleanOptionalAction, default=False, help="no progress bars")
    args = p.parse_args(argv)
    for name, least in (("films", 1), ("minutes", 0.1), ("every", 0.05)):
        if not least <= getattr(args, name) < 10_000:
            p.error(f"--{name} {getattr(args, name)}: give {least} or more")
    if args.plot and not args.plot.endswith(".png"):
        p.error(f"--plot {args.plot}: give a name that ends in .png")
    return args


def make_films(args, model, captions):
    """[(rows (F, Dt), image names (F,) on screen)] of each film, through a real file. ValueError when there are too few images for them."""
    import torch
    from tqdm import tqdm

    from apps.video.film import embeddings, make, plan
    from models.dataset import image_path, open_image

    names = sorted(captions)
    random.Random(args.seed).shuffle(names)
    plans = [plan(60 * args.minutes, f"{args.seed}/{i}") for i in range(args.films)]
    if len(names) < sum(map(len, plans)):
        raise ValueError(
            f"{args.csv}: {len(names)} images don't last for {args.films} films; give fewer --films or --minutes"
        )
    films, unused = [], iter(names)
    with tempfile.TemporaryDirectory() as folder:
        for i, shots in enumerate(tqdm(plans, desc="films", unit="", disable=args.quiet)):
            used = [next(unused) for _ in shots]
            path = Path(folder, f"{i}.mp4")
            make(path, [open_image(image_path(args.images, name)) for name in used], shots)
            times, rows = zip(*embeddings(path, model.encode_image, args.every, quiet=True))
            films.append(
                (torch.stack(rows), [used[sum(time >= shot.end for shot in shots[:-1])] for time in times])
            )
    print(
        f"{args.films} films of {args.minutes:g} min, {sum(map(len, plans))} shots, {sum(len(rows) for rows, _ in films)} frames"
    )
    return films


def least_heights(args, heights):
    """For each budget the Ward distance that leaves this many boundaries in all films together; `heights` holds each film's."""
    pooled = sorted((height for film in heights for height in film.tolist()), reverse=True)
    kept = [
        min(max(round(budget * args.minutes * args.films) - args.films, 0), len(pooled)) for budget in BUDGETS
    ]
    return [pooled[n - 1] if n else math.inf for n in kept]


def sweep(args, rows, tree, least):
    """{system: [(decode rows (S, Dt), answer (F,): which decode each frame is answered by, mean seconds from a segment's first frame
    to its words) for each setting]} for a film's rows (F, Dt), their Ward tree and the heights to cut it at."""
    import torch

    from apps.video import segments

    def nearest(edges):
        return (torch.arange(len(rows))[:, None] - (edges[:-1] + edges[1:] - 1) / 2).abs().argmin(1)

    found, (order, heights) = defaultdict(list), tree
    for budget, height in zip(BUDGETS, least):
        even = segments.uniform(len(rows), min(max(round(budget * args.minutes), 1), len(rows)))
        for name, edges in (
            ("uniform", even),
            ("selective", segments.cut(order, 1 + int((heights >= height).sum()))),
        ):
            means = segments.means(rows, edges)
            found[f"{name}, middle frame"].append((rows[segments.middles(edges)], nearest(edges), 0.0))
            found[f"{name}, mean"].append((means, nearest(edges), 0.0))
            if name == "selective":
                found["selective, mean, own segment"].append(
                    (means, torch.repeat_interleave(edges.diff()), 0.0)
                )
    for change in CHANGES:
        decodes = list(
            segments.stream(rows, change / args.every**0.5, settle=max(1, math.ceil(SETTLE / args.every)))
        )
        edges, said = (
            torch.tensor([decode.start for decode in decodes] + [len(rows)]),
            torch.stack([decode.row for decode in decodes]),
        )
        wait = args.every * sum(decode.now - decode.start for decode in decodes) / len(decodes)
        found["streaming"].append((said, nearest(edges), wait))
        found["streaming, own segment"].append((said, torch.repeat_interleave(edges.diff()), wait))
    return found


def write(args, model, rows):
    """Words of rows (R, Dt), each distinct row once."""
    import torch

    distinct, back = torch.unique(rows, dim=0, return_inverse=True)
    if args.words == "decoder":
        from models.decoder import Decoder

        texts = Decoder.load(Path(args.run, "decoder"), model.predictor.mean.device, model.text.sha256).write(
            distinct
        )
    else:
        captions, memory = model.memory(args.cache)
        texts = [captions[i] for part in distinct.split(1024) for i in (part @ memory.T).argmax(1).tolist()]
    print(f"{len(distinct)} distinct decodes; words: {args.words}")
    return [texts[i] for i in back.tolist()]


def tokens(text):
    """Lower case, runs of letters and digits with apostrophes inside. Not the Penn Treebank tokeniser, which needs Java."""
    return " ".join(re.findall(r"[^\W_]+(?:['’][^\W_]+)*", text.lower()))


def cider(pairs, captions):
    """{(image name, text): CIDEr-D} for a set of such pairs; document frequencies from all `captions` {name: [text, ...]}."""
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    references = {name: [tokens(text) for text in texts] for name, texts in captions.items()}
    corpus = CiderScorer()
    for texts in references.values():
        corpus += ("", texts)
    corpus.compute_doc_freq()
    pairs, scores = sorted(pairs), {}
    for i in range(0, len(pairs), len(references)):
        chunk = pairs[i : i + len(references)]
        scorer = CiderScorer()
        for name, text in chunk + pairs[:1] * (
            len(references) - len(chunk)
        ):  # as many as images: the scorer takes that for their number
            scorer += (tokens(text), references[name])
        scorer.document_frequency = corpus.document_frequency
        scores |= zip(chunk, scorer.compute_cider())
    return scores


def cosine(pairs, captions, model):
    """{(image name, text): the text's mean cosine with the image's captions}."""
    names, said = sorted({name for name, _ in pairs}), sorted({text for _, text in pairs})
    rows, number = model.encode_text(said).cpu(), {text: i for i, text in enumerate(said)}
    truth = {name: model.encode_text(captions[name]).cpu().mean(0) for name in names}
    return {(name, text): float(truth[name] @ rows[number[text]]) for name, text in pairs}


def measure(args, model, films, captions):
    """{system: (4, settings, films) decodes a minute, CIDEr-D, cosine, mean seconds from a segment's first frame to its words}."""
    import torch

    from apps.video.segments import ward

    trees = [ward(rows) for rows, _ in films]
    least = least_heights(args, [heights for _, heights in trees])
    sweeps = [sweep(args, rows, tree, least) for (rows, _), tree in zip(films, trees)]
    texts = iter(
        write(
            args,
            model,
            torch.cat([said for found in sweeps for system in SYSTEMS for said, _, _ in found[system]]),
        )
    )
    asked = []  # (film, system, setting, decodes, seconds, [(image name on screen, words) of each frame])
    for f, (found, (_, names)) in enumerate(zip(sweeps, films)):
        for system in SYSTEMS:
            for s, (rows, answer, wait) in enumerate(found[system]):
                said = [next(texts) for _ in rows]
                asked.append(
                    (
                        f,
                        system,
                        s,
                        len(said),
                        wait,
                        [(name, said[i]) for name, i in zip(names, answer.tolist())],
                    )
                )
    pairs = {pair for *_, answers in asked for pair in answers}
    by_cider, by_cosine = cider(pairs, captions), cosine(pairs, captions, model)
    found = {system: np.zeros((4, len(sweeps[0][system]), len(films))) for system in SYSTEMS}
    for f, system, s, decodes, wait, answers in asked:
        quality = [np.mean([score[pair] for pair in answers]) for score in (by_cider, by_cosine)]
        found[system][:, s, f] = decodes / args.minutes, *quality, wait
    return found


def curve(found, metric, films, systems):
    """(decodes a minute, quality), both (settings,), ascending in decodes: means over `films` (indices, repeats allowed), of the
    better of `systems` at each setting."""
    decodes = found[systems[0]][0][:, films].mean(1)
    quality = np.max([found[system][metric][:, films].mean(1) for system in systems], axis=0)
    order = np.argsort(decodes, kind="stable")
    return decodes[order], quality[order]


def quality_at(budget, decodes, quality):
    """Quality of a curve at a budget, interpolated over log decodes; NaN outside the curve."""
    return float(np.interp(np.log(budget), np.log(decodes), quality, left=np.nan, right=np.nan))


def needed(quality, decodes, reached):
    """The fewest decodes a minute at which a curve reaches a quality, interpolated over log decodes; infinite if it never does."""
    best = np.maximum.accumulate(reached)
    i = int(np.searchsorted(best, quality))  # the first setting that reaches it
    if i == len(best):
        return np.inf
    if i == 0:
        return float(decodes[0])
    share = (quality - best[i - 1]) / (best[i] - best[i - 1])
    return float(np.exp(np.log(decodes[i - 1]) * (1 - share) + np.log(decodes[i]) * share))


def savings(uniform, own, budget=None):
    """How many times the decodes of a system the uniform curve needs for the same quality: at a `budget` of the system, or (None)
    where the system reaches what uniform has at one decode a second, as the paper's 2.85 is meant. Infinite when uniform never gets
    there, 0 when the system doesn't, NaN when the system's sweep holds no such budget. Curves are those of `curve`."""
    if budget is None:
        return 60 / needed(quality_at(60, *uniform), *own)
    quality = quality_at(budget, *own)
    return np.nan if np.isnan(quality) else needed(quality, *uniform) / budget


def curves(args, found, metric, systems):
    """The curve of all films, and those of DRAWS draws of films with repeats; the same draws at every call, so curves can be paired."""
    chance = np.random.default_rng(args.seed)
    draws = [chance.integers(args.films, size=args.films) for _ in range(DRAWS)]
    return curve(found, metric, np.arange(args.films), systems), [
        curve(found, metric, draw, systems) for draw in draws
    ]


def report(args, found):
    """Print quality against budget for every system, then what uniform needs for the same quality."""
    films = np.arange(args.films)
    for metric, name in METRICS:
        print(
            f"\n{f'{name} x 100':31}" + "".join(f"{budget:>7}" for budget in BUDGETS) + "  decodes a minute"
        )
        for system in SYSTEMS:
            cells = (100 * quality_at(budget, *curve(found, metric, films, [system])) for budget in BUDGETS)
            print(
                f"{system:31}" + "".join(f"{cell:7.1f}" if np.isfinite(cell) else "      -" for cell in cells)
            )
    wait = quality_at(8, *curve(found, 3, films, ["streaming"]))
    print(
        f"streaming writes {wait:.1f} s after a segment's first frame (mean at 8 decodes a minute); selective when the film has ended"
    )

    def cell(value, budget):
        return (
            "never" if value == 0 else f">{BUDGETS[-1] / budget:.0f}" if np.isinf(value) else f"{value:.1f}"
        )

    heads = [*(f"{budget} a minute" for budget in REPORTED), "its 60 a minute"]
    for metric, name in METRICS:
        print(f"\n{'decodes uniform needs for the':31}" + "".join(f"{head:>23}" for head in heads))
        print(f"{f'same {name}, as multiple':31}" + f"{'(95 % interval)':>23}" * len(heads))
        uniform, uniforms = curves(args, found, metric, UNIFORM)
        for system in SYSTEMS[len(UNIFORM) :]:
            own, owns = curves(args, found, metric, [system])
            print(f"{system:31}", end="")
            for budget in (*REPORTED, None):
                text, value = "-", savings(uniform, own, budget)
                if not np.isnan(value):
                    drawn = [savings(*pair, budget) for pair in zip(uniforms, owns)]
                    low, high = np.nanpercentile(drawn, (2.5, 97.5), method="nearest")
                    text = f"{cell(value, budget)} ({cell(low, budget)} - {cell(high, budget)})"
                print(f"{text:>23}", end="")
            print()


def plot(args, found):
    """CIDEr-D and cosine against decodes, each curve with its 95 % interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    lines = (
        (UNIFORM, "uniform, better of middle and mean", "-"),
        (["selective, mean, own segment"], "selective (Ward)", "-"),
        (["streaming, own segment"], "streaming, no look-ahead", "-"),
        (["selective, mean"], "selective, answered by the nearest in time", "--"),
    )
    for (metric, name), axis in zip(METRICS, figure.subplots(1, 2)):
        for systems, label, style in lines:
            (decodes, quality), others = curves(args, found, metric, systems)
            shown = (decodes >= BUDGETS[0]) & (decodes <= BUDGETS[-1])
            (line,) = axis.plot(decodes[shown], 100 * quality[shown], style, label=label)
            drawn = [[100 * quality_at(x, *other) for x in decodes[shown]] for other in others]
            low, high = np.nanpercentile(drawn, (2.5, 97.5), axis=0)
            axis.fill_between(decodes[shown], low, high, color=line.get_color(), alpha=0.12, linewidth=0)
        axis.set(
            xscale="log", xlabel="decodes a minute", ylabel=f"{name} x 100", xlim=(BUDGETS[0], BUDGETS[-1])
        )
        axis.set_xticks(BUDGETS[::2], BUDGETS[::2])
        axis.minorticks_off()
    axis.legend(loc="lower right", fontsize=8)
    figure.savefig(args.plot, dpi=110)
    print(f"plot in {args.plot}")


def main(argv=None):
    """Exit code: 0 done, 1 failed, 130 interrupted; argparse itself exits with 2 on wrong usage."""
    args = parse(argv)
    try:
        from models.dataset import read_captions
        from models.vljepa import VLJEPA

        model = VLJEPA.load(args.run, args.device)
        captions, trained_on = defaultdict(list), set(model.state["trained_on"])
        for row in read_captions(args.csv):
            if row.image_name not in trained_on:
                captions[row.image_name].append(row.caption)
        found = measure(args, model, make_films(args, model, captions), captions)
        report(args, found)
        if args.plot:
            plot(args, found)
    except (OSError, ValueError) as error:
        print(f"video_bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
