"""models/script.py: how every script of this project ends."""

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
