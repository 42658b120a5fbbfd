"""YAML: what is given twice is refused, and a file's encoding is named where it is not UTF-8."""

import pytest

from sparse_mlp_ds.config import loading, yaml_file
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.sweep import plan

TWICE = [
    ("seed: 1\nseed: 2\n", ["'seed'", "lines 1 and 2"]),
    ("train: {seed: 1, timeout_seconds: 3, seed: 2}\n", ["'seed'", "line 1"]),
    ("stages:\n  a: {x: 1}\n  b: {x: 1}\n  a: {x: 2}\n", ["'a'", "lines 2 and 4"]),
    ("- {a: 1, a: 2}\n", ["'a'"]),
    ("1: a\n0x1: b\n", ["'1'"]),
]
ONCE = [
    ("a: 1\nb: {a: 1}\n", {"a": 1, "b": {"a": 1}}),
    ("base: &b {x: 1, y: 2}\nuse: {<<: *b, x: 3}\n", {"base": {"x": 1, "y": 2}, "use": {"x": 3, "y": 2}}),
    ("\ufeffa: 1\n", {"a": 1}),
]
READERS = [
    pytest.param(lambda path: loading.load_recipe(str(path)), id="recipe"),
    pytest.param(lambda path: plan.load(str(path)), id="sweep"),
    pytest.param(lambda path: yaml_file.read(path, "--recipe", "recipe"), id="file"),
]


@pytest.mark.parametrize("text, parts", TWICE)
@pytest.mark.parametrize("read", READERS)
def test_a_key_given_twice_is_refused_wherever_yaml_is_read(tmp_path, read, text, parts):
    path = tmp_path / "some.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read(path)
    (line,) = str(caught.value).splitlines()
    assert all(part in line for part in [str(path), "given twice", *parts])


@pytest.mark.parametrize("text, expected", ONCE)
def test_other_files_are_read_as_before(tmp_path, text, expected):
    path = tmp_path / "some.yaml"
    path.write_text(text, encoding="utf-8")
    assert yaml_file.read(path, "--recipe", "recipe") == expected


def test_an_override_is_refused_too():
    with pytest.raises(UserError, match="--set stages.*'kind' is given twice"):
        loading.load_recipe("digits", ["stages.evaluate={kind: evaluate, kind: probe}"])


def test_a_file_that_is_not_utf_8_is_named(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_bytes("name: Straße\n".encode("latin-1"))
    with pytest.raises(UserError, match="some.yaml: not UTF-8 at byte 10"):
        yaml_file.read(path, "--recipe", "recipe")
