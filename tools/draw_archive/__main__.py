"""Draw the archive that ships with the project, so that the first run needs no download.

    python -m tools.draw_archive --out images --captions five.csv --unique one.csv --questions asked.csv
    python -m tools.draw_archive --only-questions --overwrite     questions.csv alone; needs no font
    python -m tools.draw_archive --boxes boxes.json      where things are, for apps.attention --pointing
    python -m tools.draw_archive --videos 1000 --out videos        videos, with captions.csv and questions.csv

An image shows colour emoji (Noto Color Emoji, OFL) in a drawn setting. Everything follows from the seed
and the number of the image: layout.py places things, captions.py describes them, questions.py asks about
them, drawing.py draws them, vocabulary.json and wordings.py hold the words. Of videos, motion.py plans what
moves, video_words.py describes it and asks, and videos.py draws it.
"""

import json
import sys
from argparse import BooleanOptionalAction
from pathlib import Path

from models import script
from models.files import replacing
from tools.prepare import write_csv

from .captions import article, captions, unique
from .drawing import FONT, draw, load_font
from .layout import layout
from .motion import pair
from .questions import Row, questions, report
from .video_words import ask as ask_video
from .video_words import describe
from .videos import write


def parse(argv):
    """The command line."""
    p = script.parser("python -m tools.draw_archive", __doc__)
    p.add_argument(
        "--out", type=Path, default="my_image_archive", help="folder of the JPEGs (default %(default)s)"
    )
    p.add_argument(
        "--captions",
        type=Path,
        default="caption.csv",
        help="CSV, five captions per image (default %(default)s)",
    )
    p.add_argument(
        "--unique",
        type=Path,
        default="unique_caption.csv",
        help="CSV, one caption per image (default %(default)s)",
    )
    p.add_argument(
        "--questions",
        type=Path,
        default="questions.csv",
        help="CSV, questions with answers and types (default %(default)s)",
    )
    p.add_argument(
        "--videos",
        type=int,
        help="draw this many videos into --out instead, each followed by its reverse, an even number",
    )
    p.add_argument("--count", type=int, default=1000, help="number of images (default %(default)s)")
    p.add_argument(
        "--seed", type=int, default=0, help="another seed draws another archive (default %(default)s)"
    )
    p.add_argument("--font", default=FONT, help="path of NotoColorEmoji.ttf (default %(default)s)")
    p.add_argument(
        "--only-questions",
        action=BooleanOptionalAction,
        default=False,
        help="write only the CSV of the questions; needs no font",
    )
    p.add_argument(
        "--boxes",
        type=Path,
        help="write only this JSON, image name -> text -> boxes in pixels; needs no font",
    )
    p.add_argument(
        "--overwrite", action=BooleanOptionalAction, default=False, help="replace files that exist already"
    )
    return p.parse_args(argv)


def boxes(scene):
    """{"a dog": [(x0, y0, x1, y1), ...]} in pixels: the boxes of all things of each name."""
    found = {}
    for thing in scene.things:
        found.setdefault(article(thing.name), []).append(thing.box)
    return found


def ask(path, scenes):
    """Write the questions about the scenes and print how they are distributed."""
    rows = questions(scenes)
    write_csv(path, rows, Row._fields)
    print("\n".join(report(rows)))
    print(f"questions written to {path}")


def draw_videos(args):
    """Write the videos and their two CSVs into --out. Raises ValueError for an odd number of videos."""
    if args.videos < 2 or args.videos % 2:
        raise ValueError(f"--videos is {args.videos}; give an even number, since each comes with its reverse")
    font, size, said, asked = load_font(args.font), 0, [], []
    args.out.mkdir(parents=True, exist_ok=True)
    for index in range(args.videos // 2):
        clips = pair(index, args.seed)
        size += write(clips, args.out, font)
        for clip in clips:
            said += [(clip.name, text) for text in describe(clip)]
            asked += ask_video(clip)
    write_csv(args.out / "captions.csv", said)
    write_csv(args.out / "questions.csv", asked, Row._fields)
    print("\n".join(report(asked)))
    print(f"{args.videos} videos, {size / 1e6:.1f} MB, captions.csv and questions.csv written to {args.out}")


def outputs(args):
    """The paths that these flags write."""
    if args.boxes or args.videos is not None:
        return [args.boxes or args.out]
    return [args.questions] if args.only_questions else [args.out, args.captions, args.unique, args.questions]


def work(args):
    """Write the boxes, or the questions, or else the images and all CSVs. Raises ValueError when a path
    exists already."""
    for path in outputs(args):
        if path.exists() and not args.overwrite:
            raise ValueError(f"{path} exists; replace it with --overwrite, or give another path")
    if args.videos is not None:
        draw_videos(args)
        return
    scenes = [layout(index, args.seed) for index in range(args.count)]
    if args.boxes:
        text = json.dumps({scene.name: boxes(scene) for scene in scenes}, indent=1)
        with replacing(args.boxes) as new:
            new.write_text(text + "\n", encoding="utf-8")
        print(f"boxes of {len(scenes)} images written to {args.boxes}")
        return
    if args.only_questions:
        ask(args.questions, scenes)
        return
    font = load_font(args.font)
    args.out.mkdir(parents=True, exist_ok=True)
    for scene in scenes:
        draw(scene, font).save(args.out / scene.name, quality=78, optimize=True)
    write_csv(args.captions, [(scene.name, text) for scene in scenes for text in captions(scene)])
    write_csv(args.unique, [(scene.name, unique(scene)) for scene in scenes])
    size = sum((args.out / scene.name).stat().st_size for scene in scenes)
    print(f"{len(scenes)} images, {size / 1e6:.1f} MB, written to {args.out}")
    print(f"captions written to {args.captions} and {args.unique}")
    ask(args.questions, scenes)


def main(argv=None):
    """Exit code: 0 done, 1 failed, 130 interrupted; argparse itself exits with 2 on wrong usage."""
    args = parse(argv)
    return script.run("draw_archive", lambda: work(args))


if __name__ == "__main__":
    sys.exit(main())
