"""Checkpoints of strangers: whatever they claim ends in one line that names it, before it is believed."""

import hashlib
import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparse_mlp_ds.checkpoints.manifest import MANIFEST
from tests.helpers.made_checkpoints import call, edit, finished, recipe, save
from tests.helpers.weight_files import SPARSE, make

NORM = "param/backbone.norm.weight"  # [12], in the file as two runs of 6
FILE = "rank_00000.safetensors"


def refused(capsys, path, *parts, command=("export",)):
    """One line, exit code 2, and nothing written."""
    out = path.parent / "out"
    code, _, errors = call(capsys, *command, path, *([out] if command == ("export",) else []))
    assert code == 2 and len(errors) == 1, errors
    (line,) = errors
    assert line.isprintable() and all(part in line for part in parts), line
    assert not out.exists() and not [entry for entry in path.parent.iterdir() if entry.name.startswith(".out")]


def sign(path):
    """Write the files' real sizes and hashes into the manifest: a stranger can do that, too."""
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for file in path.glob("*.safetensors")
    }
    edit(path, lambda manifest: manifest.update(files=files))


def rename(old, new):
    return lambda tensors: tensors.update({new: tensors.pop(old)})


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda t: t.pop(f"{NORM}@6"), [NORM, "holds 6 of the 12 elements"]),
        (rename(f"{NORM}@6", f"{NORM}@5"), [NORM, "overlap"]),
        (rename(f"{NORM}@6", f"{NORM}@7"), [f"{NORM}@7", "lies outside", "[12]"]),
        (rename(f"{NORM}@6", f"{NORM}@-6"), [f"{NORM}@-6", "no piece"]),
        (rename(f"{NORM}@6", f"{NORM}@06"), [f"{NORM}@06", "no piece"]),
        (rename(f"{NORM}@6", f"{NORM}@{10**30}"), ["no piece"]),
        (rename(f"{NORM}@6", NORM), [NORM, "no piece"]),
        (rename(f"{NORM}@6", "../../etc/passwd@0"), ["../../etc/passwd@0", "no piece"]),
        (rename(f"{NORM}@6", f"{NORM}\x1b[2J@6"), ["no piece"]),
        (rename(f"{NORM}@6", "param/backbone.other@0"), ["param/backbone.other@0", "no piece"]),
        (lambda t: t.update({f"{NORM}@6": torch.ones(2, 3)}), [f"{NORM}@6", "[2, 3]"]),
        (lambda t: t.update({f"{NORM}@6": torch.ones(6, dtype=torch.int32)}), [f"{NORM}@6", "not floating-point"]),
        (lambda t: t.update({f"{NORM}@6": torch.full((6,), torch.nan)}), [NORM, "holds NaN or infinity"]),
    ],
)
def test_pieces(tmp_path, capsys, change, parts):
    path = save(tmp_path)
    tensors = load_file(path / FILE)
    change(tensors)
    save_file(tensors, path / FILE)
    sign(path)
    refused(capsys, path, *parts)


def test_pieces_of_one_tensor_may_lie_in_two_files_but_once(tmp_path, capsys):
    path = save(tmp_path)
    tensors = load_file(path / FILE)
    save_file({f"{NORM}@0": tensors[f"{NORM}@0"]}, path / "rank_00001.safetensors")
    sign(path)
    refused(capsys, path, NORM, "overlap")
    del tensors[f"{NORM}@0"]
    save_file(tensors, path / FILE)
    sign(path)
    assert call(capsys, "export", path, tmp_path / "fine")[0] == 0


def put(*keys_and_value):
    *keys, last, value = keys_and_value

    def change(manifest):
        for key in keys:
            manifest = manifest[key]
        manifest[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (put("tensors", NORM, [1 << 40]), f"'{NORM}' is larger than the files"),
        (put("tensors", NORM, [1 << 61, 1 << 61]), f"'{NORM}' is larger than the files"),
        (put("tensors", NORM, [1 << 70]), f"'{NORM}' has no shape"),
        (put("tensors", NORM, [-12]), f"'{NORM}' has no shape"),
        (put("tensors", NORM, [0]), f"'{NORM}' has no shape"),
        (put("tensors", NORM, [12.0]), f"'{NORM}' has no shape"),
        (put("tensors", NORM, [True]), f"'{NORM}' has no shape"),
        (put("tensors", NORM, "12"), f"'{NORM}' has no shape"),
        (put("tensors", "../../x", [1]), "'../../x' is no tensor name"),
        (put("tensors", "a\nb", [1]), r"'a\nb' is no tensor name"),
        (put("tensors", []), "tensors is no mapping"),
        (put("progress", None), "progress is no mapping"),
        (put("recipe", "x"), "recipe is no mapping"),
        (put("files", [FILE]), "files is no mapping"),
        (put("files", FILE, None), "damaged manifest.json"),
        (put("files", FILE, "bytes", -1), "has no size"),
        (put("files", FILE, "bytes", True), "has no size"),
        (put("files", FILE, "sha256", 3), "damaged manifest.json"),
        (put("files", FILE, "sha256", "0" * 63), "no sha256"),
        (put("files", FILE, {"bytes": 1 << 50, "sha256": "0" * 64}), f"{FILE}: differs"),
        (put("files", "../secret", {"bytes": 1, "sha256": "0" * 64}), "leaves the folder"),
        (put("files", "..", {"bytes": 1, "sha256": "0" * 64}), "leaves the folder"),
        (put("files", "/etc/passwd", {"bytes": 1, "sha256": "0" * 64}), "leaves the folder"),
        (put("files", "", {"bytes": 1, "sha256": "0" * 64}), "leaves the folder"),
        (put("format", [2]), "checkpoint format [2], this version reads 2"),
        (lambda manifest: manifest.pop("tensors"), "'tensors' is missing"),
        (put("recipe", {}), "no section 'model'"),
        (put("recipe", "model", "name", ["x"]), "no model"),
        (put("recipe", "model", "name", "a\x1b[2J"), "no model"),
        (put("recipe", "model", "width", "twelve"), "width"),
        (put("recipe", "model", "dense_blocks", 10**12), "claims 1000000000001 blocks"),
        (put("recipe", "model", "sparse_blocks", 10**12), "blocks"),
        (put("recipe", "model", "moe_s", {"experts": 10**9, "hidden": 14}), "claims more experts"),
        (put("recipe", "model", "width", 10**15), "is of shape"),
        (put("recipe", "model", "image_size", 1 << 70), "different model"),
        (put("recipe", "moe", {"noise": -1}), "noise"),
        (put("recipe", "moe", {"unheard": 1}), "unheard"),
        (put("recipe", "data", "std", [0, 1, 1]), "std"),
        (put("recipe", "stages", []), "no section 'stages'"),
        (put("progress", "step", "many"), "step"),
        (put("progress", "done", [{"name": ["x"], "kind": 3}]), "manifest.json"),
        (put("version", None), "version"),
    ],
)
def test_manifests(tmp_path, capsys, change, part):
    path = save(tmp_path)
    edit(path, change)
    refused(capsys, path, part)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "damaged"),
        ("[]", "damaged"),
        ("\xff", "damaged"),
        ("[" * 100_000, "damaged"),
        ('{"format": 2, "format": 2}', "two entries have the same name"),
        ("9" * 5000, "damaged"),
    ],
)
def test_manifests_that_are_none(tmp_path, capsys, text, part):
    path = save(tmp_path)
    (path / MANIFEST).write_bytes(text.encode("latin-1"))
    refused(capsys, path, MANIFEST, part)


def test_two_tensors_of_the_same_name(tmp_path, capsys):
    path = save(tmp_path)
    text = (path / MANIFEST).read_text()
    (path / MANIFEST).write_text(text.replace(f'"{NORM}": [', f'"{NORM}": [12], "{NORM}": [', 1))
    refused(capsys, path, "two entries have the same name")


@pytest.mark.parametrize("name", [FILE, MANIFEST])
def test_links_out_of_the_folder(tmp_path, capsys, name):
    path = save(tmp_path)
    (path / name).rename(tmp_path / "elsewhere")
    (path / name).symlink_to(tmp_path / "elsewhere")
    refused(capsys, path, name, "a link out of the folder")


def test_what_a_pipe_would_never_answer(tmp_path, capsys):
    path = save(tmp_path)
    (path / MANIFEST).unlink()
    os.mkfifo(path / MANIFEST)
    refused(capsys, path, "not a checkpoint")


@pytest.mark.parametrize("command", [("export",), ("checkpoint", "inspect"), ("checkpoint", "verify")])
def test_truncated_and_flipped_files(tmp_path, capsys, command):
    path = save(tmp_path)
    content = (path / FILE).read_bytes()
    (path / FILE).write_bytes(content[:-1])
    refused(capsys, path, f"{FILE}: differs", command=command)
    sign(path)
    refused(capsys, path, f"{FILE}: not a safetensors file", command=command)
    (path / FILE).write_bytes(content[:-9] + bytes([content[-9] ^ 64]) + content[-8:])
    edit(path, put("files", FILE, {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}))
    refused(capsys, path, f"{FILE}: differs", command=command)


def test_a_header_that_claims_more_than_the_file(tmp_path, capsys):
    path = save(tmp_path)
    content = (path / FILE).read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header[f"{NORM}@6"] |= {"shape": [1 << 50], "data_offsets": [0, 1 << 52]}
    new = json.dumps(header).encode()
    for head in (len(new).to_bytes(8, "little") + new, (1 << 60).to_bytes(8, "little") + new):
        (path / FILE).write_bytes(head + content[8 + size :])
        sign(path)
        refused(capsys, path, f"{FILE}: not a safetensors file")


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("opened",)


def test_pickles_are_not_opened(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path)
    (path / FILE).write_bytes(pickle.dumps(Harmful()) + bytes(1 << 16))
    sign(path)
    for command in (("export",), ("predict",), ("checkpoint", "diff", path)):
        arguments = {"export": [path, "out"], "predict": [path, "a.png"]}.get(command[0], [path])
        code, _, (line,) = call(capsys, *command, *arguments)
        assert code == 2 and "not a safetensors file" in line
    assert not (tmp_path / "opened").exists()


def test_a_transformer_whose_positions_no_file_bears_out(tmp_path, capsys):
    from sparse_mlp_ds.config.recipe import model_spec
    from sparse_mlp_ds.models import registry
    from tests.helpers.tiny_families import TINY

    spec = model_spec(TINY["vit"])
    path = save(tmp_path, param=registry.build(spec, 5), recipe=recipe(spec.model_copy(update={"image_size": 4 << 20})))
    refused(capsys, path, "no model here is that large")


def test_resuming_distrusts_the_same(tmp_path):
    """Training reads with the same reader: an overlap that hides a hole is found."""
    from sparse_mlp_ds.checkpoints.manifest import open_checkpoint
    from sparse_mlp_ds.checkpoints.reader import Reader
    from sparse_mlp_ds.errors import UserError

    path = save(tmp_path, param=make(SPARSE), progress=finished())
    tensors = load_file(path / FILE)
    tensors[f"{NORM}@3"] = tensors.pop(f"{NORM}@6")
    save_file(tensors, path / FILE)
    sign(path)
    with pytest.raises(UserError, match=f"pieces of '{NORM}' overlap"):
        Reader(open_checkpoint(path))
