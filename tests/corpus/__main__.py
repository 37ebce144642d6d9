"""Files as strangers' folders hold them: odd and broken images, odd and broken captions files, and what
people have on their disks (photographs, tars, folders, text files, videos).

    python -m tests.corpus                    make the files, try all of them, print the table
    python -m tests.corpus --keep DIR         and leave the files there
    python -m tests.corpus --mutations 100    100 random changes per format instead of 8

What must come of a file is known before it is written: its pixels or rows, or one error with the path and the
reason. Anything else is wrong, and so is a file that takes over 10 s or 4 GB. Rows, members of a tar, files
of a folder and frames must come out, or be counted as left out.
"""

import os
import sys
import tempfile
from pathlib import Path

from models.script import parser
from tests.corpus import captions, clips, everyday, images
from tests.corpus.trial import table, trial

KINDS = {
    "images": images.KINDS,
    "captions files": captions.KINDS,
    "what people have": everyday.KINDS + clips.KINDS,
}


def run(folder, mutations=8):
    """(Cases, outcomes, largest resident memory in bytes) of the whole corpus, written to `folder`. The
    memory is that of images and captions files: packing loads torch."""
    hostile = images.make_images(folder / "image", mutations)
    hostile += captions.make_captions(folder / "captions")
    outcomes, peak = trial(hostile)
    usual = everyday.make_everyday(folder / "everyday") + clips.make_clips(folder / "clips")
    return hostile + usual, outcomes + trial(usual)[0], peak


def main(argv=None):
    """Exit code: 0 all right, 1 something is wrong."""
    p = parser("python -m tests.corpus", __doc__)
    p.add_argument("--keep", metavar="DIR", help="empty folder to make the files in, which stay there")
    p.add_argument("--mutations", type=int, default=8, help="random changes per format (default %(default)s)")
    args = p.parse_args(argv)
    if args.keep and Path(args.keep).exists() and any(Path(args.keep).iterdir()):
        p.error(f"--keep {args.keep}: not empty; name a new folder")
    with tempfile.TemporaryDirectory() as scratch:
        os.chmod(scratch, 0o755)  # "nobody" must reach a file to find that it may not be read
        folder = Path(args.keep or scratch).resolve()
        cases, outcomes, peak = run(folder, args.mutations)
    for title, kinds in KINDS.items():
        print(*table(title, kinds, cases, outcomes), sep="\n", end="\n\n")
    print(f"largest resident memory {peak / 2**20:,.0f} MB, for an image or a captions file")
    for case, outcome in zip(cases, outcomes):
        if outcome not in ("right", "error"):
            print(f"{case.path.relative_to(folder)}: {outcome}")
    return int(not set(outcomes) <= {"right", "error"})


if __name__ == "__main__":
    sys.exit(main())
