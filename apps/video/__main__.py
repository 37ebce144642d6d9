"""Ask a film what it shows.

    python -m apps.video demo                             make a small film of the archive's pictures, runs/film.mp4
    python -m apps.video watch runs/film.mp4              cut it where its meaning changes, write words once a segment
    python -m apps.video watch runs/film.mp4 --stream     the same without looking ahead, as from a camera
    python -m apps.video watch runs/film.mp4 --uniform 2  the baseline: words every 2 seconds
    python -m apps.video find "a dog in the snow" runs/film.mp4
    python -m apps.video embed runs/film.mp4 --out runs/film.safetensors

Selective decoding as in VL-JEPA (Chen et al., arXiv 2512.10942, section 4.6); tools/video_bench.py measures it.
"""

import argparse
import math
import os
import random
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

# Ward distance times the square root of the seconds between frames. On 12 films of training photographs, a frame every 0.5 s, 1.3
# finds the true boundaries within 1 s: F1 0.997 with Ward, 0.992 streaming, and 0.99 on 5 films of held-out drawings; over 0.98 on
# all of them from 1.2 to 1.5.
CHANGE = 1.3
SETTLE = 3.0  # seconds a streamed segment is watched before words are written


def at_least(least):
    """argparse's type of a finite number that is not smaller."""

    def number(text):
        value = float(text)
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{text}: give a number of {least:g} or more")
        return value

    return number


def parse(argv):
    """The command line."""
    p = argparse.ArgumentParser(
        "python -m apps.video", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag = argparse.BooleanOptionalAction
    run = argparse.ArgumentParser(add_help=False)
    run.add_argument(
        "--run",
        default="runs/default",
        help="run folder of train.py (its best.pt), or a checkpoint (default %(default)s)",
    )
    look = argparse.ArgumentParser(add_help=False, parents=[run])
    look.add_argument(
        "--every",
        type=at_least(0.01),
        default=0.5,
        help="seconds from frame to frame (default %(default)s)",
        metavar="S",
    )
    look.add_argument(
        "--change",
        type=at_least(0),
        default=CHANGE,
        help="how different two neighbouring segments are: Ward distance times "
        "the square root of --every (default %(default)s); less gives more segments",
    )
    look.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default %(default)s)")
    look.add_argument("--quiet", action=flag, default=False, help="no progress bars")
    commands = p.add_subparsers(dest="command", required=True)

    c = commands.add_parser(
        "embed", parents=[look], help="one vector a film, and the frames' vectors and times, as safetensors"
    )
    c.add_argument("film", help="film file", metavar="FILM")
    c.add_argument("--out", required=True, help="file to write", metavar="FILE.safetensors")

    c = commands.add_parser("watch", parents=[look], help="words for a film's segments")
    c.add_argument("film", help="film file", metavar="FILM")
    how = c.add_mutually_exclusive_group()
    how.add_argument(
        "--segments", type=int, help="this many segments (default: as --change cuts)", metavar="N"
    )
    how.add_argument(
        "--uniform", type=at_least(0.01), help="one segment every N seconds, whatever is shown", metavar="N"
    )
    how.add_argument(
        "--stream", action=flag, default=False, help="decide as frames arrive, without looking ahead"
    )
    c.add_argument(
        "--decode",
        choices=("mean", "middle"),
        default="mean",
        help="what is decoded: the segment's mean embedding, or that of "
        "its middle frame (default %(default)s)",
    )
    c.add_argument(
        "--words",
        choices=("nearest", "decoder"),
        default="nearest",
        help="the nearest training caption, or a sentence of "
        "the decoder that apps.decode trains (default %(default)s)",
    )
    c.add_argument("--decoder", help="folder of that decoder (default: RUN/decoder)", metavar="DIR")
    c.add_argument(
        "--strip", help="draw the segments' middles with their words into this PNG", metavar="FILE.png"
    )
    c.add_argument(
        "--cache",
        default=".cache/features.sqlite",
        help="file that keeps the captions' embeddings (default %(default)s)",
    )

    c = commands.add_parser(
        "find", parents=[look], help="the moments of a film that a text describes, best first"
    )
    c.add_argument("text", help="what to look for", metavar="TEXT")
    c.add_argument("film", help="film file", metavar="FILM")
    c.add_argument(
        "--count", type=int, default=12, help="moments to print at most (default %(default)s)", metavar="N"
    )

    c = commands.add_parser(
        "demo",
        parents=[run],
        help="make a film of pictures the run was not trained on, and print what it shows",
    )
    c.add_argument(
        "--out", default="runs/film.mp4", help="film to write (default %(default)s)", metavar="FILE.mp4"
    )
    c.add_argument("--seconds", type=at_least(2), default=60.0, help="its length (default %(default)s)")
    c.add_argument(
        "--seed", type=int, default=0, help="chooses pictures, shots and camera (default %(default)s)"
    )
    c.add_argument(
        "--csv",
        default="unique_caption.csv",
        help="captions file with image_name and comment (default %(default)s)",
    )
    c.add_argument(
        "--images",
        default="my_image_archive",
        help="folder of its images (default %(default)s)",
        metavar="DIR",
    )
    args = p.parse_args(argv)
    for name in ("segments", "count"):
        if getattr(args, name, None) is not None and getattr(args, name) < 1:
            p.error(f"--{name} {getattr(args, name)}: give 1 or more")
    if getattr(args, "stream", False) and args.decode == "middle":
        p.error("--stream decodes the mean of what it has seen; --decode middle needs the whole segment")
    if getattr(args, "decoder", None) and args.words == "nearest":
        p.error(f"--decoder {args.decoder}: add --words decoder to use it")
    for name, end in (("strip", ".png"), ("out", ".safetensors" if args.command == "embed" else ".mp4")):
        if getattr(args, name, None) and not getattr(args, name).endswith(end):
            p.error(f"--{name} {getattr(args, name)}: give a name that ends in {end}")
    return args


class Segment(NamedTuple):
    start: float  # seconds
    end: float
    middle: float
    score: float  # cosine of the words and the decoded embedding
    words: str


def whole_film(args, model):
    """(times (F,) float32 seconds, rows (F, Dt) float32 unit rows) of a film."""
    import torch

    from apps.video.film import embeddings

    times, rows = zip(*embeddings(args.film, model.encode_image, args.every, quiet=args.quiet))
    return torch.tensor(times), torch.stack(rows)


def cut_by_change(rows, args):
    """Edges (S + 1,) of the segments that --change leaves apart."""
    from apps.video.segments import cut, ward

    order, heights = ward(rows)
    return cut(order, 1 + int((heights * args.every**0.5 > args.change).sum()))


def writer(args, model):
    """(a function: rows (S, Dt) -> [(score, words)], what it is)."""
    if args.words == "nearest":
        captions, memory = model.memory(args.cache)

        def nearest(rows):
            scores, found = (rows @ memory.T).max(1)
            return [(score, captions[i]) for score, i in zip(scores.tolist(), found.tolist())]

        return nearest, f"the nearest of {len(captions)} training captions"
    from models.decoder import Decoder

    folder = args.decoder or str(Path(args.run, "decoder"))
    decoder = Decoder.load(folder, model.predictor.mean.device, model.text.sha256)

    def write(rows):
        texts = decoder.write(rows)
        return list(zip((rows * model.encode_text(texts).cpu()).sum(1).tolist(), texts))

    return write, f"written by {folder}"


def embed(args, model):
    """Write clip (Dt,), frames (F, Dt) and times (F,) seconds; the file appears whole or not at all."""
    import torch.nn.functional as F
    from safetensors.torch import save

    times, rows = whole_film(args, model)
    clip = F.normalize(rows.mean(0), dim=0)
    new = Path(args.out).with_name(f".{Path(args.out).name}.{os.getpid()}.tmp")
    try:
        about = dict(film=Path(args.film).name, run=args.run, text_sha256=model.text.sha256)
        new.write_bytes(save(dict(clip=clip, frames=rows, times=times), about))
        os.replace(new, args.out)
    finally:
        new.unlink(missing_ok=True)
    print(
        f"{args.out}: clip ({len(clip)},), frames {tuple(rows.shape)}, times ({len(times)},), one every {args.every:g} s"
    )


def film_end(args, last):
    """Where the film ends, in seconds, when `last` is the time of its last frame that was looked at."""
    from apps.video.film import seconds

    return min(last + args.every, seconds(args.film) or math.inf)


def line(segment):
    return f"{segment.start:8.1f} - {segment.end:7.1f}  {segment.score:6.3f}  {segment.words}"


def watch(args, model):
    """Print the segments of a film with their words, and how many decodes that took."""
    write, source = writer(args, model)
    print(f"{args.film}: a frame every {args.every:g} s; words: {source}")
    found, end = watch_stream(args, model, write) if args.stream else watch_whole(args, model, write)
    print(
        f"decodes: {len(found)} in {end:.1f} s; one a second would be {math.ceil(end)}, {math.ceil(end) / len(found):.1f} times as many"
    )
    if args.strip:
        strip(args, found)


def watch_whole(args, model, write):
    """All frames first, then the best cut."""
    from apps.video.segments import cut, means, middles, uniform, ward

    times, rows = whole_film(args, model)
    if args.uniform:
        edges = uniform(len(rows), min(max(round(len(rows) * args.every / args.uniform), 1), len(rows)))
    else:
        edges = cut(ward(rows)[0], args.segments) if args.segments else cut_by_change(rows, args)
    said = write(means(rows, edges) if args.decode == "mean" else rows[middles(edges)])
    starts, end = times[edges[:-1]].tolist(), film_end(args, times[-1].item())
    found = [
        Segment(*at, *words)
        for *at, words in zip(starts, [*starts[1:], end], times[middles(edges)].tolist(), said)
    ]
    print(*map(line, found), sep="\n")
    return found, end


def watch_stream(args, model, write):
    """One frame at a time; a segment's end is not known when its words are, so the second column is when they were written."""
    from apps.video.film import embeddings
    from apps.video.segments import stream

    print("   start   written   score  words")
    times, said = [], []

    def arriving():
        for time, row in embeddings(args.film, model.encode_image, args.every, batch=1, quiet=True):
            times.append(time)
            yield row

    for decode in stream(
        arriving(), args.change / args.every**0.5, settle=max(1, math.ceil(SETTLE / args.every))
    ):
        said.append((decode, write(decode.row[None])[0]))
        print(line(Segment(times[decode.start], times[decode.now], 0, *said[-1][1])), flush=True)
    starts = [decode.start for decode, _ in said]
    spans, end = list(zip(starts, [*starts[1:], len(times)])), film_end(args, times[-1])
    found = [
        Segment(times[a], (*times, end)[b], times[(a + b - 1) // 2], *words)
        for (a, b), (_, words) in zip(spans, said)
    ]
    waits = [times[decode.now] - times[decode.start] for decode, _ in said]
    print(
        f"latency, from a segment's first frame to its words: median {statistics.median(waits):.1f} s, at most {max(waits):.1f} s"
    )
    return found, end


def find(args, model):
    """Print the moments, one a segment: that of the frame nearest to the text."""
    times, rows = whole_film(args, model)
    edges, clock = cut_by_change(rows, args).tolist(), [*times.tolist(), film_end(args, times[-1].item())]
    scores = rows @ model.encode_text(args.text).cpu()[0]  # (F,)
    moments = []
    for a, b in zip(edges, edges[1:]):
        best = a + int(scores[a:b].argmax())
        moments.append((scores[best].item(), clock[best], clock[a], clock[b]))
    print(f'{args.film}: {len(moments)} segments; best moments for "{args.text}"\n  cosine       at  segment')
    for score, at, start, end in sorted(moments, reverse=True)[: args.count]:
        print(f"{score:8.3f} {at:8.1f} {start:8.1f} - {end:.1f}")


def demo(args):
    """A film of pictures that are not in the run's training set."""
    from apps.video.film import make, plan
    from models import runs as checkpoint
    from models.dataset import image_path, open_image, read_captions

    state = checkpoint.load(args.run if args.run.endswith(".pt") else Path(args.run, "best.pt"))
    captions = {row.image_name: row.caption for row in read_captions(args.csv)}
    names = sorted(set(captions) - set(state["trained_on"]))
    shots = plan(args.seconds, args.seed)
    if len(names) < len(shots):
        raise ValueError(
            f"{args.csv}: {len(names)} images that {args.run} was not trained on, and {args.seconds:g} s take {len(shots)}; "
            "give --csv and --images of others, or a smaller --seconds"
        )
    names = random.Random(args.seed).sample(names, len(shots))
    make(args.out, [open_image(image_path(args.images, name)) for name in names], shots)
    print(f"{args.out}: {args.seconds:g} s, {len(shots)} shots")
    for shot, name in zip(shots, names):
        print(
            f"{shot.start:8.1f} - {shot.end:7.1f}  {'dissolve' if shot.dissolve else 'cut':8}  {name}  {captions[name]}"
        )


def strip(args, found):
    """Draw the segments' middles, six a row, times and words under them."""
    import textwrap

    from matplotlib.figure import Figure

    from apps.video.film import frames

    columns = min(6, len(found))
    rows = math.ceil(len(found) / columns)
    figure = Figure(figsize=(2.2 * columns, 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.set(xticks=[], yticks=[], frame_on=False)
    for axis, segment, (_, image) in zip(
        axes, found, frames(args.film, [segment.middle for segment in found])
    ):
        image.thumbnail((400, 400))
        axis.imshow(image)
        text = textwrap.shorten(segment.words.replace("$", r"\$"), 90, placeholder=" ...")
        axis.set_xlabel(f"{segment.start:.1f} - {segment.end:.1f} s\n{textwrap.fill(text, 30)}", fontsize=8)
    figure.savefig(args.strip, dpi=100)
    print(f"filmstrip in {args.strip}")


def main(argv=None):
    """Exit code: 0 done, 1 failed, 130 interrupted; argparse itself exits with 2 on wrong usage."""
    args = parse(argv)
    try:
        if args.command == "demo":
            demo(args)
            return 0

        from models.vljepa import VLJEPA

        {"embed": embed, "watch": watch, "find": find}[args.command](args, VLJEPA.load(args.run, args.device))
    except (OSError, ValueError) as error:
        print(f"video: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
