"""What every script of this project shares: flags that name a model, and one way to end.

    def main(argv=None):
        args = parse(argv)
        return run("search", lambda: find(args))

Exit codes: 0 done, 1 failed, 130 interrupted, 141 when the reader of a pipe ended (`| head`); argparse itself
exits with 2 on wrong usage. Results go to stdout, errors and progress to stderr."""

import argparse
import logging
import os
import sys

MOST_FRAMES = 65535  # of a video: a key of the feature cache has 16 bits for them
OWN = ("models", "apps", "tools")  # packages of this project: one that is missing is a bug


def parser(name, description):
    """An ArgumentParser that shows a module's docstring as it is written, and takes no shortened flags: a
    typing error would be one."""
    shown = dict(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    return argparse.ArgumentParser(name, allow_abbrev=False, **shown)


def add_command(commands, name, what, example, parents=()):
    """Add a subcommand. Its --help begins with `what`, and ends with the command line `example`."""
    return commands.add_parser(
        name,
        allow_abbrev=False,
        help=what,
        description=f"{what[0].upper()}{what[1:]}.",
        epilog=f"example:\n    {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=parents,
    )


def add_model_flags(arguments):
    """Add --run, --device and --quiet to a parser or an argument group."""
    arguments.add_argument(
        "--run",
        default="runs/default",
        help="run folder of train.py, or a shared model (default %(default)s)",
    )
    arguments.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default %(default)s)")
    add_quiet(arguments)


def add_folder_flags(arguments):
    """Add --exclude and --follow-links, for what walks a folder."""
    what = "leave out files and folders of this name or path, such as '*.png' or 2019/raw; may be repeated"
    arguments.add_argument("--exclude", action="append", default=[], help=what, metavar="PATTERN")
    add_follow_links(arguments)


def add_follow_links(arguments):
    """Add --follow-links."""
    switch = argparse.BooleanOptionalAction
    what = "read images behind symbolic links, also outside the folder"
    arguments.add_argument("--follow-links", action=switch, default=False, help=what)


def add_frames(arguments, default=None):
    """Add --frames; without a default, it is that of the run."""
    what = f"frames that a video is read as, evenly spaced (default: {default or 'as in training'})"
    arguments.add_argument("--frames", type=_frames, default=default, help=what, metavar="N")


def _frames(text):
    if not 1 <= int(text) <= MOST_FRAMES:
        raise argparse.ArgumentTypeError(f"{text}: give 1 to {MOST_FRAMES:,}")
    return int(text)


def add_quiet(arguments):
    """Add --quiet."""
    switch = argparse.BooleanOptionalAction
    what = "no progress bars, and no counts where nothing was left out"
    arguments.add_argument("--quiet", action=switch, default=False, help=what)


def hush(quiet):
    """With `quiet`, only the warnings of the library are printed."""
    logging.getLogger("models").setLevel(logging.WARNING if quiet else logging.INFO)


def run(name, work, quiet=False):
    """Call `work()` and return the exit code. What the library logs is printed to stderr; ValueError and
    OSError become one line there, since their messages are written for the user, and so does a package that
    is missing. Any other exception is a bug and is raised."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    hush(quiet)
    try:
        code = work() or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python fails to flush it at exit
        return 141
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0] in OWN:
            raise
        print(f"{name}: {error}; pip install -r requirements.txt", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(f"{name}: {said(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def answers(name, paths, work, results):
    """Yield (path, work(path)) for each image. Of one of several that cannot be read, the reason goes to
    stderr and into the list `results`; an error that names no image is raised."""
    for path in paths:
        try:
            done = work(path)
        except (OSError, ValueError) as error:
            if len(paths) == 1 or str(path) not in said(error):
                raise
            print(f"{name}: {said(error)}", file=sys.stderr)
            results.append(dict(image=str(path), error=said(error)))
        else:
            yield path, done


def said(error):
    """The message for the user: of an error of the operating system the file and what is wrong with it."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error)
