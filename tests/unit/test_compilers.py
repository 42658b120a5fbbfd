"""What a host lacks that cannot compile, in a run that must compile and in one that only would."""

import shutil
from types import SimpleNamespace

import pytest

from sparse_mlp_ds.config.deepspeed_json import DeepSpeedJson
from sparse_mlp_ds.distributed import compilers
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.train import compiled
from sparse_mlp_ds.train.job import Job


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Return a function that makes a script the only compiler on the search path."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))

    def make(name, script):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)

    return make


@pytest.fixture
def triton(monkeypatch):
    monkeypatch.setattr(compilers, "has_triton", lambda: True)


def test_without_a_compiler(compiler, triton):
    assert compilers.lacking(gpu=False) == "there is no C++ compiler (g++); install one"
    assert compilers.lacking(gpu=True) == "there is no C compiler (gcc or clang); install one"


def test_without_triton(compiler, monkeypatch):
    compiler("gcc", "exit 0")
    monkeypatch.setattr(compilers, "has_triton", lambda: False)
    assert compilers.lacking(gpu=True) == "there is no Triton that works with this GPU; install the package triton"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "echo 'stdin:1:10: fatal error: Python.h: No such file' >&2; echo 'it stops' >&2; exit 1",
            "Python.h: No such",
        ),
        ("exit 3", "exit code 3"),
    ],
)
def test_with_a_compiler_that_does_not_work(compiler, triton, script, said):
    compiler("clang", script)
    lack = compilers.lacking(gpu=True)
    assert lack.startswith("the C compiler clang cannot use Python's headers (")
    assert said in lack and "\n" not in lack


def test_with_one_that_works(compiler, triton, monkeypatch):
    compiler("mine", "exit 0")
    assert compilers.lacking(gpu=False)
    monkeypatch.setenv("CXX", "mine")
    assert compilers.lacking(gpu=False) is None


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ here")
def test_the_compiler_of_this_host_is_really_asked(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    found = compilers.lacking(gpu=False)
    assert found is None or "Python.h" in found
    monkeypatch.setattr(compilers.sysconfig, "get_path", lambda name: str(tmp_path))
    (tmp_path / "Python.h").write_text("#error not this one\n")
    assert "not this one" in str(compilers.lacking(gpu=False))


def job(wanted, gpu, zero=2):
    recipe = SimpleNamespace(train=SimpleNamespace(compile=wanted))
    ds = DeepSpeedJson({"zero_optimization": {"stage": zero}})
    return Job(recipe, ds, None, "auto", 1, {}, {}, [], None, [], ["said before"], {}, gpu)


@pytest.mark.parametrize(
    ("wanted", "gpu", "able", "compiles"),
    [
        ("auto", True, True, True), ("auto", True, False, False), ("auto", False, True, False),
        ("on", True, True, True), ("on", False, True, True), ("off", True, True, False), ("off", False, True, False),
    ],
)  # fmt: skip
def test_what_the_key_means(monkeypatch, wanted, gpu, able, compiles):
    monkeypatch.setattr(compilers, "lacking", lambda gpu: None if able else "there is no compiler; install one")
    decided = compiled.decide(job(wanted, gpu))
    assert decided.compiles == compiles
    more = [] if able else ["train.compile: auto: blocks are not compiled: there is no compiler; install one"]
    assert decided.remarks == ["said before", *more]


def test_a_run_that_must_compile_is_refused(monkeypatch):
    monkeypatch.setattr(compilers, "lacking", lambda gpu: "there is no compiler; install one")
    with pytest.raises(UserError, match="^train.compile: on: there is no compiler; install one, or set .*off$"):
        compiled.decide(job("on", True))
    assert compiled.decide(job("on", True), elsewhere=True).compiles, "a plan for a different machine"


def test_nothing_is_compiled_whose_weights_are_collected_by_layer(monkeypatch):
    monkeypatch.setattr(compilers, "lacking", lambda gpu: None)
    decided = compiled.decide(job("auto", True, zero=3))
    assert not decided.compiles and "ZeRO-3 collects weights" in decided.remarks[-1]
    with pytest.raises(UserError, match="^train.compile: on: ZeRO-3 .*; use ZeRO-2, or set train.compile: off$"):
        compiled.decide(job("on", True, zero=3), elsewhere=True)
