"""A page in the browser: look at an image, search the indexed folder, watch a video.

    python -m apps.page                                      then open http://127.0.0.1:7860
    python -m apps.page --run runs/ask --index photos.sqlite --port 8000

The index is that of `python -m apps.search index DIR`. Nothing leaves this machine, and only this machine can
open the page unless you give --host. It needs Gradio: pip install -r requirements-page.txt"""

import signal
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

from apps.search.store import DEFAULT
from models import script


def parse(argv):
    """The command line."""
    p = script.parser("python -m apps.page", __doc__)
    script.add_model_flags(p)
    add = p.add_argument
    add("--index", default=DEFAULT, help="index file of apps.search (default %(default)s)", metavar="FILE")
    add("--cache", default=".cache/features.sqlite", help="feature cache, for captions (default %(default)s)")
    video_help = "video offered on the tab Watch, if it is there (default %(default)s, of apps.video demo)"
    add("--video", default="runs/video.mp4", help=video_help, metavar="FILE")
    host_help = "address to listen on; 0.0.0.0 lets other machines in (default %(default)s)"
    add("--host", default="127.0.0.1", help=host_help)
    add("--port", type=int, default=7860, help="port to listen on (default %(default)s)")
    add("--megabytes", type=int, default=100, help="largest file that may be sent (default %(default)s)")
    args = p.parse_args(argv)
    for name, least, most in (("port", 1, 65535), ("megabytes", 1, 100_000)):
        if not least <= getattr(args, name) <= most:
            p.error(f"--{name} {getattr(args, name)}: give {least} to {most}")
    return args


def work(args):
    """Serve the page until Ctrl-C."""
    if not find_spec("gradio"):
        raise ValueError("the page needs Gradio; pip install -r requirements-page.txt")
    from apps.page.loaded import Loaded
    from apps.page.serve import serving

    loaded = Loaded(args.run, args.index, args.device, args.cache)
    if not Path(args.index).is_file():
        again = f"python -m apps.search index DIR --run {args.run} --index {args.index}"
        print(f"note: {args.index}: no index there, so nothing can be searched; {again}", file=sys.stderr)
    video = args.video if Path(args.video).is_file() else None
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or what was sent would stay on the disk
    with serving(loaded, args.host, args.port, video, args.megabytes) as url:
        print(f"{args.run}: {url} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()


def main(argv=None):
    """The exit code, see models/script.py."""
    args = parse(argv)
    return script.run("page", lambda: work(args), args.quiet)


if __name__ == "__main__":
    sys.exit(main())
