"""Make the pictures of README.md again, by the commands that README.md shows.

    python train.py && python -m tools.pictures         docs/pictures/grid.png, map.png, strip.png

The other pictures need Flickr8k; the commands are in docs/results.md, docs/scale.md and docs/training.md."""

import importlib
import shlex
import sys
from pathlib import Path

from models import script

# The last word of the last command names the picture that it writes.
COMMANDS = {
    "grid.png": (
        "python -m apps.search index my_image_archive",
        'python -m apps.search find "a dog on a beach" --grid beach.png',
    ),
    "map.png": (
        "python -m apps.attention my_image_archive/10002456.jpg "
        '"people hanging from a cable" "a bridge" --out map.png',
    ),
    "strip.png": (
        "python -m apps.video demo",
        "python -m apps.video watch runs/video.mp4 --strip runs/strip.png",
    ),
}


def main_of(module):
    """The main function of the app that `python -m MODULE` runs."""
    return importlib.import_module(f"{module}.__main__").main


def make(folder):
    """Write the pictures into a folder. Returns 0, or the exit code of the first command that fails."""
    for name, commands in COMMANDS.items():
        for command in commands:
            _, _, module, *words = shlex.split(command)
            if command == commands[-1]:
                words[-1] = str(Path(folder, name))
            print(f"python -m {module} {shlex.join(words)}", flush=True)
            if code := main_of(module)(words):
                return code
    return 0


def main(argv=None):
    """Return the exit code, see models.script."""
    p = script.parser("python -m tools.pictures", __doc__)
    p.add_argument("--out", default="docs/pictures", help="folder to write to (default %(default)s)")
    args = p.parse_args(argv)
    return script.run("pictures", lambda: make(args.out))


if __name__ == "__main__":
    sys.exit(main())
