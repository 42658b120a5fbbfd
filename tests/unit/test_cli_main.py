"""The command `sparse-mlp-ds` as a whole: its version, exit codes, and help texts that explain every argument."""

import argparse

import pytest

from sparse_mlp_ds import __version__
from sparse_mlp_ds.cli import main
from sparse_mlp_ds.errors import CRASH, DONE, STOPPED, USAGE, RunError, UserError


def parsers(parser):
    """Yield every command's parser with its name; those that only hold sub-commands too."""
    yield parser.prog, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from parsers(child)


PARSERS = dict(parsers(main._parser()))


def test_every_command_is_read():
    assert {"sparse-mlp-ds models", "sparse-mlp-ds shards make", "sparse-mlp-ds checkpoint prune"} <= PARSERS.keys()


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as end:
        main.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"sparse-mlp-ds {__version__}\n"


@pytest.mark.parametrize(
    "name", sorted(PARSERS.keys() - {"sparse-mlp-ds train"})
)  # the trainer has a parser of its own
def test_help_explains_the_command_and_each_of_its_arguments(name):
    parser = PARSERS[name]
    assert parser.description
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            assert len(action._choices_actions) == len(action.choices), "a sub-command has no line in the list"
        else:
            assert action.help and action.help != argparse.SUPPRESS, f"{name}: {action.dest} is not explained"
    assert parser.format_help()


def test_the_trainer_explains_its_own_flags(capsys):
    with pytest.raises(SystemExit) as end:
        main.main(["train", "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: sparse-mlp-ds train") and "--recipe" in text


@pytest.mark.parametrize(
    "error, code, printed",
    [
        (UserError("a: wrong\nb: wrong"), USAGE, "error: a: wrong\nerror: b: wrong\n"),
        (RunError("it failed"), CRASH, "error: it failed\n"),
        (FileNotFoundError(2, "No such file", "a.txt"), USAGE, "error: a.txt: No such file\n"),
    ],
)
def test_an_error_is_printed_without_a_traceback_and_decides_the_exit_code(monkeypatch, capsys, error, code, printed):
    def fail(args):
        raise error

    monkeypatch.setattr("sparse_mlp_ds.cli.models._models", fail)
    with pytest.raises(SystemExit) as end:
        main.main(["models"])
    assert (end.value.code, capsys.readouterr().err) == (code, printed)


def test_the_exit_codes_are_these():
    """Schedulers and scripts rely on them."""
    assert (DONE, CRASH, USAGE, STOPPED) == (0, 1, 2, 85)
