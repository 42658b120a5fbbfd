"""The line that an error ends with, and which rank prints it."""

import importlib
import sys

import pytest
import torch

from sparse_mlp_ds.errors import (
    ReportedError,
    RunError,
    UserError,
    did_you_mean,
    explained,
    explaining,
    of_system,
    one_line,
    printed_by_one,
)


def test_a_message_becomes_one_line():
    assert one_line(ValueError("two\n  lines ")) == "two lines"
    assert one_line(ValueError("x" * 300), 200) == "x" * 200
    assert one_line(MemoryError()) == "MemoryError"


@pytest.mark.parametrize(
    ("error", "elsewhere"), [(UserError("a key: mend it"), ReportedError), (RunError("a disk is full"), RunError)]
)
def test_one_rank_prints_what_all_ranks_raise(error, elsewhere):
    assert printed_by_one(error, here=True) is error
    other = printed_by_one(error, here=False)
    assert type(other) is elsewhere and isinstance(other, type(error)), "it must end with the same exit code"
    assert isinstance(other, ReportedError) or str(other) == "", "a different rank prints it"


def test_the_nearest_name_is_offered():
    assert did_you_mean("digitz", ["digits", "vit"]) == "did you mean 'digits'?"
    assert did_you_mean("qqq", ["vit", "digits"]) == "valid: digits, vit"


def _raised(function):
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


BROKEN = {
    # how a package fails -> its file, and what of the reason is told
    "missing": (None, "No module named"),
    "half installed": ("import of_which_a_part_is_absent", "of_which_a_part_is_absent"),
    "a shared library lacks": ("raise OSError('libcudart.so.12: cannot open shared object file')", "libcudart"),
    "built for another numpy": ("raise ValueError('numpy.dtype size changed')", "numpy.dtype size changed"),
    "written for a later Python": ("def f(:", "invalid syntax"),
    "of a wrong version": ("import os; os.no_such_name", "no_such_name"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_package_that_cannot_be_imported_is_named(tmp_path, monkeypatch, how):
    name, (content, reason) = f"package_{len(how)}", BROKEN[how]
    if content is not None:
        (tmp_path / f"{name}.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    error = explained(_raised(lambda: importlib.import_module(name)))
    assert type(error) is UserError and reason in str(error) and "\n" not in str(error)
    assert sys.executable in str(error), "which Python lacks it"
    assert f"package {name if 'absent' not in reason else ''}" in str(error)


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
     RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried")],
)  # fmt: skip
def test_memory_that_is_used_up_is_no_crash(error):
    assert "memory is used up" in str(explained(error)) and "train_micro_batch_size_per_gpu" in str(explained(error))


def test_what_the_system_refuses_counts_while_it_is_set_up_and_no_longer():
    refused = _raised(lambda: open("/nowhere/file"))  # noqa: SIM115
    assert str(explained(refused)) == "/nowhere/file: No such file or directory"
    assert explained(refused, os_errors=False) is None
    assert str(of_system(OSError(28, "No space left on device"), "OUT", "make room")) == (
        "OUT: No space left on device; make room"
    )


@pytest.mark.parametrize("error", [ValueError("a bug"), RuntimeError("a bug"), KeyError("a bug")])
def test_an_error_of_the_program_keeps_its_traceback(error):
    assert explained(error) is None
    with pytest.raises(type(error)), explaining():
        raise error


def test_code_that_a_package_generates_is_not_its_import(tmp_path):
    code = compile("raise RuntimeError('a kernel')", str(tmp_path / "generated.py"), "exec")
    assert explained(_raised(lambda: exec(code, {"__name__": "torch.generated"}))) is None


def test_a_block_that_cannot_be_compiled_says_how_to_do_without():
    def refuse(*_):
        raise ValueError("no such kernel")

    error = _raised(lambda: torch.compile(lambda x: x + 1, backend=refuse, fullgraph=True)(torch.ones(1)))
    assert type(error) is not ValueError, "torch's own exception"
    assert "no such kernel" in str(explained(error)) and "train.compile: off" in str(explained(error))


def test_the_error_in_place_of_an_exception_names_the_rank():
    with pytest.raises(UserError, match="^rank 3 on node1: memory is used up"), explaining("rank 3 on node1"):
        raise MemoryError
    reported = ReportedError("a different rank prints it")
    with pytest.raises(ReportedError) as error, explaining("rank 3 on node1"):
        raise reported
    assert error.value is reported
