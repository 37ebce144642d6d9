"""models/script.py: how every script of this project ends."""

import os
import subprocess
import sys

import pytest

from models import script
from tests.conftest import ROOT


def raises(error):
    raise error


def test_run_returns_the_exit_code_of_the_work():
    assert script.run("x", lambda: None) == 0 and script.run("x", lambda: 3) == 3


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("a.csv: no rows"), "a.csv: no rows"),
        (FileNotFoundError(2, "none", "a.csv"), "a.csv: none"),  # no [Errno 2]
        (FileNotFoundError("a.csv: no such file"), "a.csv: no such file"),
    ],
)
def test_errors_for_the_user_become_one_line(error, said, capsys):
    assert script.run("search", lambda: raises(error)) == 1
    out, err = capsys.readouterr()
    assert err == f"search: {said}\n" and out == ""


def test_interrupt_is_130_and_a_bug_is_raised():
    assert script.run("x", lambda: raises(KeyboardInterrupt())) == 130
    with pytest.raises(ZeroDivisionError):
        script.run("x", lambda: 1 / 0)


def test_what_models_log_goes_to_stderr():
    """In a process of its own: pytest has set up logging already."""
    log = "[logging.getLogger(name).info(name) for name in ('models.dataset', 'PIL')]"
    code = f"import logging\nfrom models import script\nscript.run('x', lambda: {log} and 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "models.dataset\n" and done.stdout == ""


def test_parser_has_the_flags_that_name_a_model(capsys):
    p = script.parser("x", "First line.\n\n    a command   as it is written\n")
    script.add_model_flags(p)
    args = p.parse_args([])
    assert (args.run, args.device, args.quiet) == ("runs/default", "auto", False)
    with pytest.raises(SystemExit, match="0"):
        p.parse_args(["--help"])
    assert "    a command   as it is written" in capsys.readouterr().out


@pytest.mark.parametrize("code", ["print('a' * 99)", "[print('a' * 99, flush=True) for _ in range(9999)]"])
def test_reader_that_ends_early_is_no_error(code):
    """As `python eval.py photos | head` has it: with all still to be written, and in the middle."""
    code = f"import sys\nfrom models import script\nsys.exit(script.run('x', lambda: {code} and 0))"
    read, write = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=write, stderr=subprocess.PIPE)
    os.close(read)
    os.close(write)
    assert process.communicate()[1] == b"" and process.returncode == 141


def test_missing_package_is_named_and_one_of_this_project_is_a_bug(capsys):
    def needs(module):
        __import__(module)

    assert script.run("video", lambda: needs("no_such_package")) == 1
    assert capsys.readouterr().err == (
        "video: No module named 'no_such_package'; pip install -r requirements.txt\n"
    )
    with pytest.raises(ModuleNotFoundError):
        script.run("video", lambda: needs("models.no_such_module"))


@pytest.mark.parametrize(("quiet", "lines"), [(True, 1), (False, 2)])
def test_quiet_prints_counts_only_where_something_was_left_out(quiet, lines):
    log = "logging.getLogger('models.x').log(level(dict(bad=count)), '%d bad', count)"
    code = "import logging\nfrom models import script\nfrom models.files import level\n"
    code += f"script.run('x', lambda: [{log} for count in (0, 2)] and 0, {quiet})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "2 bad" and done.stderr.count("\n") == lines
