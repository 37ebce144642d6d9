"""Every command of this project looks and ends the same: --help, wrong usage, an error, imports."""

import functools
import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

GONE = ["--run", "gone"]
# Command -> words that make it fail, since what they name is not there.
COMMANDS = {
    "train.py": ["--csv", "gone.csv"],
    "eval.py": ["gone.jpg", *GONE],
    "-m apps.attention": ["gone.jpg", "a dog", *GONE],
    "-m apps.decode train": GONE,
    "-m apps.decode caption": ["gone.jpg", *GONE],
    "-m apps.decode score": ["--csv", "gone.csv", *GONE],
    "-m apps.export": GONE,
    "-m apps.page": None,  # Gradio takes seconds to import, and may not be installed
    "-m apps.search index": ["gone"],
    "-m apps.search find": ["a dog", "--index", "gone"],
    "-m apps.search duplicates": ["--index", "gone"],
    "-m apps.video demo": GONE,
    "-m apps.video embed": ["gone.mp4", "--out", "rows.safetensors", *GONE],
    "-m apps.video find": ["a dog", "gone.mp4", *GONE],
    "-m apps.video watch": ["gone.mp4", *GONE],
    "-m tools.bench": ["--only", "jpeg", "--csv", "gone.csv"],
    "-m tools.draw_archive": ["--out", "/dev/null/gone"],
    "-m tools.experiments": ["--compare", "gone"],
    "-m tools.linear": ["--csv", "gone.csv", "--eval-csv", "gone.csv"],
    "-m tools.motion_bench": ["gone", "--runs", "gone"],
    "-m tools.pack": ["--csv", "gone.csv", "--out", "{}.tar"],
    "-m tools.pictures": None,  # runs others, and ends as they do
    "-m tools.prepare": ["coco", "gone.json"],
    "-m tools.questions": ["--csv", "gone.csv", "--out", "questions.csv"],
    "-m tools.reference_runs": ["--flickr8k", "gone"],
    "-m tools.right_words": GONE,
    "-m tools.video_bench": GONE,
}
every_command = pytest.mark.parametrize("command", COMMANDS)
LATE = "torch torchvision PIL matplotlib av gradio tensorboard transformers huggingface_hub".split()


@functools.cache
def module_of(script):
    """The name of the module that `python SCRIPT` or `python -m SCRIPT` runs."""
    name = script.removesuffix(".py")
    return f"{name}.__main__" if Path(ROOT, *name.split(".")).is_dir() else name


def call(command, *words):
    """(exit code, the name in front of its errors) of a command run in this process."""
    script, *before = command.removeprefix("-m ").split()
    try:
        code = importlib.import_module(module_of(script)).main([*before, *words])
    except SystemExit as end:  # argparse
        code = end.code
    return code, script.removeprefix("apps.").removeprefix("tools.")


def helped(command, capsys):
    """What --help prints, on stdout alone."""
    assert call(command, "--help")[0] == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_list_of_commands_is_complete(capsys):
    found = {"train.py", "eval.py"}
    for folder in ("apps", "tools"):
        modules = [path.stem for path in (ROOT / folder).glob("*.py") if path.stem != "__init__"]
        modules += [path.parent.name for path in (ROOT / folder).glob("*/__main__.py")]
        for module in modules:
            command = f"-m {folder}.{module}"
            choices = re.search(r"\{([\w,]+)\} \.\.\.", helped(command, capsys))
            found |= {f"{command} {name}" for name in choices[1].split(",")} if choices else {command}
    assert found == COMMANDS.keys()


@every_command
def test_help_has_an_example_that_calls_this_command(command, capsys):
    text = helped(command, capsys)
    assert text.startswith(f"usage: {command if command.endswith('.py') else f'python {command}'}")
    assert re.search(rf"^    (python|torchrun) (.* )?{re.escape(command)}\b", text, re.M)
    if not command.startswith("-m tools"):
        assert "--quiet" in text


@every_command
def test_wrong_usage_exits_with_2_and_prints_nothing_on_stdout(command, capsys):
    assert call(command, "--no-such-flag")[0] == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("usage: ")


@pytest.mark.parametrize("command", [command for command, words in COMMANDS.items() if words])
def test_what_is_not_there_exits_with_1_and_one_line_that_names_it(command, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, name = call(command, *COMMANDS[command])
    last = capsys.readouterr().err.splitlines()[-1]
    assert code == 1 and last.startswith(f"{name}: ") and "gone" in last


@every_command
def test_command_ends_through_script_run(command):
    """tests/models/test_script.py has what that does with Ctrl-C, errors and a reader that ends early."""
    main = importlib.import_module(module_of(command.removeprefix("-m ").split()[0])).main
    assert re.search(r"= script\.run\(|return (script\.)?run\(", inspect.getsource(main))


def test_help_of_a_script_imports_nothing_heavy():
    """All in one process, each for what it is the first to import."""
    code = (
        "import contextlib, importlib, io, json, sys\n"
        "found, before = {}, set()\n"
        "for name in sys.argv[1:]:\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "        importlib.import_module(name).main(['--help'])\n"
        f"    found[name] = [m for m in {LATE!r} if m in sys.modules.keys() - before]\n"
        "    before = {*sys.modules}\n"
        "print(json.dumps(found))"
    )
    names = sorted({module_of(command.removeprefix("-m ").split()[0]) for command in COMMANDS})
    command = [sys.executable, "-c", code, *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert {name: late for name, late in json.loads(done.stdout).items() if late} == {}


def test_training_and_asking_import_no_gradio_and_no_tensorboard(tiny_run, tmp_path):
    """Nor what other commands need. The run is finished, so --resume has nothing to train."""
    run = shutil.copytree(tiny_run.folder, tmp_path / "run")
    image = tiny_run.images / tiny_run.names[0]
    train_flags = ["train", *tiny_run.flags(run, "--resume")]
    index = [
        "apps.search.__main__",
        "index",
        tiny_run.images,
        "--index",
        tmp_path / "index.sqlite",
        "--run",
        run,
    ]
    code = (
        "import importlib, json, sys\n"
        "codes = [importlib.import_module(name).main(words) for name, *words in json.loads(sys.argv[1])]\n"
        "print(codes, [m for m in sys.argv[2:] if m in sys.modules])"
    )
    calls = [train_flags, ["eval", image, "--run", run], index]
    calls = json.dumps([[str(word) for word in words] for words in calls])
    unwanted = "gradio tensorboard trackio wandb transformers timm open_clip pandas".split()
    command = [sys.executable, "-c", code, calls, *unwanted]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["[0, 0, 0] []"], done.stderr
