"""Ask a video what it shows.

    python -m apps.video demo                              make a short video of images, runs/video.mp4
    python -m apps.video watch runs/video.mp4              cut it where its meaning changes; words per segment
    python -m apps.video watch runs/video.mp4 --stream     the same without looking ahead, as from a camera
    ffmpeg -i rtsp://camera -f matroska - | python -m apps.video watch -
    python -m apps.video watch runs/video.mp4 --uniform 2  the baseline: words every 2 seconds
    python -m apps.video find "a dog in the snow" runs/video.mp4
    python -m apps.video embed runs/video.mp4 --out runs/video.safetensors

Selective decoding as in VL-JEPA (Chen et al., arXiv 2512.10942, section 4.6), measured by
tools/video_bench.py."""

import argparse
import math
import random
import statistics
import sys
import textwrap
from collections import Counter
from pathlib import Path

from apps.video import CHANGE
from models import script

SETTLE = 3.0  # seconds of a streamed segment before its words are written


def at_least(least):
    """The argparse type of a finite number that is not smaller than `least`."""

    def number(text):
        value = float(text)
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{text}: give a number of {least:g} or more")
        return value

    return number


def parse(argv):
    """The command line."""
    p = script.parser("python -m apps.video", __doc__)
    model = argparse.ArgumentParser(add_help=False)
    script.add_model_flags(model)
    look = argparse.ArgumentParser(add_help=False, parents=[model])
    add = look.add_argument
    add("--every", type=at_least(0.01), default=0.5, help="seconds between frames (default %(default)s)")
    change_help = "how different neighbouring segments are at least (default %(default)s; Ward distance)"
    add("--change", type=at_least(0), default=CHANGE, help=change_help)
    flag = argparse.BooleanOptionalAction
    bad_help = "leave out frames that are damaged, and count them, instead of stopping there"
    add("--skip-bad", action=flag, default=False, help=bad_help)
    commands = p.add_subparsers(dest="command", required=True)

    what = "save the embeddings of a video and its frames"
    example = "python -m apps.video embed runs/video.mp4 --out runs/video.safetensors"
    c = script.add_command(commands, "embed", what, example, [look])
    c.add_argument("video", help="video file", metavar="VIDEO")
    c.add_argument("--out", required=True, help="file to write", metavar="FILE.safetensors")

    what = "print words for each segment of a video"
    example = "python -m apps.video watch runs/video.mp4 --strip runs/strip.png"
    c = script.add_command(commands, "watch", what, example, [look])
    live_help = "video file, or - for a pipe or a device such as /dev/video0, which mean --stream"
    c.add_argument("video", help=live_help, metavar="VIDEO")
    how = c.add_mutually_exclusive_group()
    how.add_argument("--segments", type=int, help="number of segments (default: as --change cuts)")
    how.add_argument("--uniform", type=at_least(0.01), help="one segment every N seconds", metavar="N")
    how.add_argument("--stream", action=flag, default=False, help="decide as frames arrive, as from a camera")
    add = c.add_argument
    decode_help = "decode a segment's mean embedding, or its middle frame's (default %(default)s)"
    add("--decode", choices=("mean", "middle"), default="mean", help=decode_help)
    words_help = "the nearest training caption, or a sentence of apps.decode's decoder (default %(default)s)"
    add("--words", choices=("nearest", "decoder"), default="nearest", help=words_help)
    add("--decoder", help="folder of that decoder (default: RUN/decoder)", metavar="DIR")
    add("--strip", help="draw the segments with their words into this PNG", metavar="FILE.png")
    add("--cache", default=".cache/features.sqlite", help="feature cache, for captions (default %(default)s)")

    what = "print the moments that match a text, best first"
    example = 'python -m apps.video find "a ship at sea" runs/video.mp4'
    c = script.add_command(commands, "find", what, example, [look])
    c.add_argument("text", help="what to look for", metavar="TEXT")
    c.add_argument("video", help="video file", metavar="VIDEO")
    c.add_argument("--count", type=int, default=12, help="moments to print at most (default %(default)s)")

    what = "make a video of images the run was not trained on"
    example = "python -m apps.video demo"
    c = script.add_command(commands, "demo", what, example, [model])
    add = c.add_argument
    add("--out", default="runs/video.mp4", help="file to write (default %(default)s)", metavar="FILE.mp4")
    add("--seconds", type=at_least(2), default=60.0, help="length of the video (default %(default)s)")
    add("--seed", type=int, default=0, help="chooses images, shots and camera (default %(default)s)")
    add("--csv", help="captions file (default: the run's)")
    add("--images", help="folder of its images (default: the run's)", metavar="DIR")
    script.add_follow_links(c)
    args = p.parse_args(argv)
    for name in ("segments", "count"):
        if getattr(args, name, None) is not None and getattr(args, name) < 1:
            p.error(f"--{name} {getattr(args, name)}: give 1 or more")
    if args.command == "watch" and (args.video == "-" or Path(args.video).is_char_device()):
        args.stream = True
        for name in ("segments", "uniform", "strip"):
            if getattr(args, name) is not None:
                p.error(f"--{name} {getattr(args, name)}: needs a file, and {args.video} is read once")
    if getattr(args, "stream", False) and args.decode == "middle":
        p.error("--stream decodes the mean of the frames so far; --decode middle needs the whole segment")
    if getattr(args, "decoder", None) and args.words == "nearest":
        p.error(f"--decoder {args.decoder}: add --words decoder to use it")
    for name, end in (("strip", ".png"), ("out", ".safetensors" if args.command == "embed" else ".mp4")):
        if getattr(args, name, None) and not getattr(args, name).endswith(end):
            p.error(f"--{name} {getattr(args, name)}: give a name that ends in {end}")
    return args


def whole_video(args, model, report):
    """(times, rows (F, Dt)) of the video, see apps.video.watch. Fills in the `report`."""
    from apps.video import watch

    return watch.whole_video(args.video, model.encode_image, args.every, args.quiet, args.skip_bad, report)


def embed(args, model):
    """Write clip (Dt,), frames (F, Dt) and times (F,) in seconds."""
    import torch
    import torch.nn.functional as F
    from safetensors.torch import save_file

    from models.dataset.video import Report
    from models.files import replacing

    report = Report()
    times, rows = whole_video(args, model, report)
    clip = F.normalize(rows.mean(0), dim=0)  # (Dt,)
    about = dict(video=Path(args.video).name, run=args.run, text_sha256=model.text.sha256)
    with replacing(args.out) as new:
        save_file(dict(clip=clip, frames=rows, times=torch.tensor(times)), new, about)
    shapes = f"clip ({len(clip)},), frames {tuple(rows.shape)}, times ({len(times)},)"
    print(f"{args.out}: {shapes}, one every {args.every:g} s")
    print(f"{args.video}: {report}")


def line(start, end, score, words):
    """One row of the table of `watch`."""
    return f"{start:8.1f} - {end:7.1f}  {score:6.3f}  {words}"


def watch(args, model):
    """Print the segments of a video with their words, and how many decodes that took."""
    from apps.video.watch import writer
    from models.dataset.video import Report

    report = Report()
    write, source = writer(model, args.words, args.decoder or Path(args.run, "decoder"), args.cache)
    print(f"{args.video}: a frame every {args.every:g} s; words: {source}")
    count, found = (watch_stream if args.stream else watch_whole)(args, model, write, report)
    each_second = math.ceil(report.end)
    print(
        f"decodes: {count} in {report.end:.1f} s; one per second is {each_second}, "
        f"{each_second / count:.1f} times as many"
    )
    print(f"{args.video}: {report}")
    if args.strip:
        draw_strip(args, found)


def watch_whole(args, model, write, report):
    """Read all frames, then cut. Returns the number of segments and the Segments, and fills in the
    `report`."""
    from apps.video.segments import cut, cut_by_change, means, middles, uniform, ward
    from apps.video.watch import describe

    times, rows = whole_video(args, model, report)
    if args.uniform:
        edges = uniform(len(rows), round(len(rows) * args.every / args.uniform))
    elif args.segments:
        edges = cut(ward(rows)[0], args.segments)
    else:
        edges = cut_by_change(rows, args.every, args.change)
    said = write(means(rows, edges) if args.decode == "mean" else rows[middles(edges)])
    found = describe(edges.tolist(), times, report.end, said)
    for segment in found:
        print(line(segment.start, segment.end, segment.score, segment.words))
    return len(found), found


def watch_stream(args, model, write, report):
    """Take one frame at a time, in memory that does not grow. The end of a segment is unknown when its words
    are written, so the second column is the time of writing. Returns the number of segments and, where
    --strip needs them, the Segments; fills in the `report`."""
    from apps.video.segments import stream
    from apps.video.watch import describe, embeddings

    print("   start   written   score  words")
    step, frames, starts, said = args.every, 0, [], []
    waits = Counter()  # frames from the first one of a segment to its words

    def arriving():
        nonlocal frames
        encode = model.encode_image
        for _, row in embeddings(args.video, encode, step, 1, True, args.skip_bad, report):
            frames += 1
            yield row

    settle = max(1, math.ceil(SETTLE / step))
    for decode in stream(arriving(), args.change / step**0.5, settle):
        (words,) = write(decode.row[None])
        waits[decode.now - decode.start] += 1
        print(line(decode.start * step, decode.now * step, *words), flush=True)
        if args.strip:
            starts.append(decode.start)
            said.append(words)
    latency = f"median {step * statistics.median(waits.elements()):.1f} s, at most {step * max(waits):.1f} s"
    print(f"latency, from a segment's first frame to its words: {latency}")
    if not args.strip:
        return waits.total(), []
    times = [i * step for i in range(frames)]
    return waits.total(), describe([*starts, frames], times, report.end, said)


def find(args, model):
    """Print the best frame of each segment, best first."""
    from apps.video.segments import cut_by_change
    from apps.video.watch import moments
    from models.dataset.video import Report

    report = Report()
    times, rows = whole_video(args, model, report)
    edges = cut_by_change(rows, args.every, args.change).tolist()
    scores = rows @ model.encode_text(args.text).cpu()[0]  # (F,)
    found = moments(scores, edges, [*times, report.end])
    print(f'{args.video}: {len(found)} segments; best moments for "{args.text}"')
    print("  cosine       at  segment")
    for moment in found[: args.count]:
        print(f"{moment.score:8.3f} {moment.at:8.1f} {moment.start:8.1f} - {moment.end:.1f}")
    print(f"{args.video}: {report}")


def demo(args, model):
    """Make a video of held-out images, and print its shots."""
    from apps.video.demo import make, plan
    from models.dataset import open_image

    dataset = model.held_out(args.csv, args.images, follow_links=args.follow_links)
    captions = {row.image_name: row.text for row in dataset.rows}
    shots = plan(args.seconds, args.seed)
    if len(captions) < len(shots):
        raise ValueError(
            f"{dataset.csv_path}: {len(captions)} images that {args.run} was not trained on, and "
            f"{args.seconds:g} s take {len(shots)}; give --csv and --images of others, or a smaller --seconds"
        )
    names = random.Random(args.seed).sample(sorted(captions), len(shots))
    images = [open_image(dataset.path(dataset.image_names.index(name))) for name in names]
    make(args.out, images, shots)
    print(f"{args.out}: {args.seconds:g} s, {len(shots)} shots")
    for shot, name in zip(shots, names):
        change = "dissolve" if shot.dissolve else "cut"
        print(f"{shot.start:8.1f} - {shot.end:7.1f}  {change:8}  {name}  {captions[name]}")


def draw_strip(args, found):
    """Draw the segments' middle frames, six in a row, with times and words below them."""
    from matplotlib.figure import Figure

    from models.dataset.frames import read_frames
    from models.files import replacing

    columns = min(6, len(found))
    rows = math.ceil(len(found) / columns)
    figure = Figure(figsize=(2.2 * columns, 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.set(xticks=[], yticks=[], frame_on=False)
    frames = read_frames(args.video, [segment.middle for segment in found], args.skip_bad)
    for axis, segment, (_, image) in zip(axes, found, frames):
        image.thumbnail((400, 400))
        axis.imshow(image)
        words = textwrap.fill(textwrap.shorten(segment.words, 90, placeholder=" ..."), 30)
        label = f"{segment.start:.1f} - {segment.end:.1f} s\n{words}"
        axis.set_xlabel(label, fontsize=8, parse_math=False)
    with replacing(args.strip) as new:
        figure.savefig(new, dpi=100, format="png")
    print(f"filmstrip in {args.strip}")


def work(args):
    """Load the model and run the command."""
    from models.vljepa import VLJEPA

    command = {"embed": embed, "watch": watch, "find": find, "demo": demo}[args.command]
    command(args, VLJEPA.load(args.run, args.device))


def main(argv=None):
    """Return the exit code, see models.script."""
    args = parse(argv)
    return script.run("video", lambda: work(args), args.quiet)


if __name__ == "__main__":
    sys.exit(main())
