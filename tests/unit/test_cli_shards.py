"""`sparse-mlp-ds shards`: what it makes, says and refuses; exit code 2 and a line per defect."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sparse_mlp_ds.cli import main
from sparse_mlp_ds.data import index
from sparse_mlp_ds.shards import raw_datasets, writer
from tests.helpers.tars import contents, picture, sample, write_tar

REPOSITORY = Path(main.__file__).parents[2]
PYTHON = [sys.executable, "-c", "from sparse_mlp_ds.cli.main import main; main()"]


def image_folder(folder, count=12):
    for n in range(count):
        path = folder / f"c{n % 3}" / f"{n:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(n, "jpeg", (40, 40)))
    return folder


def named_by(folder):
    return f"each named by `sparse-mlp-ds shards verify {folder}`"


def test_the_digits_are_made_verified_and_made_again(shards, tmp_path):
    out = tmp_path / "digits"
    expected = [
        f"{out}/train: 1437 images in 8 tars, 10 classes", f"{out}/val: 360 images in 3 tars, 10 classes",
    ]  # fmt: skip
    assert shards("make", "digits", out) == (0, expected, [])
    assert shards("make", "digits", out) == (0, expected, [])
    assert shards("verify", out) == (
        0,
        [f"{out}/train: 1437 images, all sound", f"{out}/val: 360 images, all sound"],
        [],
    )
    code, _, (line,) = shards("make", "digits", tmp_path, out)
    assert (code, line) == (2, "error: shards make digits: give the folder OUT alone")


def test_tars_are_remade_mixed_and_what_was_passed_over_is_named(shards, tmp_path):
    members = [member for n in range(30) for member in sample(f"{n}", n // 10)]
    write_tar(tmp_path / "in/a.tar", *members, ("x.png", b""), ("text.png", b"no image"), ("text.cls", b"0"))
    command = ("make", "wds", tmp_path / "in", tmp_path / "out", "--per-shard", 7, "--workers", 1)
    code, said, complaints = shards(*command, "--resize", 4, "--quality", 30, "--seed", 5)
    assert (code, complaints) == (0, [])
    assert len(said) == 4 and "at most 4 pixels" in said[3]
    assert said[0].startswith("passed over 1: needs one image and one .cls side by side (")
    assert said[0].endswith(f"({tmp_path}/in/a.tar: 'x' at offset 61440, has x.png)")
    assert said[1].startswith(f"passed over 1: left out: cannot be decoded ({tmp_path}/out/out-0")
    assert said[2] == f"{tmp_path}/out: 30 images in 5 tars, 3 classes; not usable: 1, {named_by(tmp_path / 'out')}"
    found = index.load(tmp_path / "out")
    with open(found.shards[0].path, "rb") as file:
        file.seek(found.shards[0].offsets[0])
        assert Image.open(io.BytesIO(file.read(found.shards[0].sizes[0]))).size == (4, 4)
    assert sorted(key for key, _, _ in contents(found)) == sorted(str(n) for n in range(30))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["index.json", *(s.name for s in found.shards)]
    code, _, complaints = shards("verify", tmp_path / "out", "--workers", 1)
    assert code == 2 and len(complaints) == 1  # the one that was left out
    code, _, (line,) = shards(*command)
    assert code == 2 and line.startswith(f"error: {tmp_path}/out: holds shards made from different images or options")


def test_tars_of_others_get_an_index(shards, tmp_path):
    write_tar(tmp_path / "a.tar", *(member for n in range(20) for member in sample(f"{n}", n // 10)), ("x.png", b""))
    code, said, _ = shards("index", tmp_path)
    assert code == 0
    assert said == [
        f"passed over 1: needs one image and one .cls side by side ({tmp_path}/a.tar: 'x' at offset 40960, has x.png)",
        f"{tmp_path}: 20 images in 1 tars, 2 classes; not usable: 1, {named_by(tmp_path)}",
        f"{tmp_path}: the images are sorted by class; keep data.shuffle_shards 0, or mix them with `sparse-mlp-ds "
        "shards make wds`",
        f"{tmp_path}: classes 0, 1",
    ]
    (tmp_path / "names").write_text("cat\ndog\n")
    assert shards("index", tmp_path, "--classes", tmp_path / "names")[0] == 0
    assert index.load(tmp_path).classes == ["cat", "dog"]
    (tmp_path / "names").write_text("cat\n")
    code, _, (line,) = shards("index", tmp_path, "--classes", tmp_path / "names")
    assert code == 2 and "has label 1, but 1 classes are named" in line


def test_verify_names_every_defect_of_every_split(shards, tmp_path):
    for split in ("train", "val"):
        for name in "abc":
            write_tar(
                tmp_path / split / f"{name}.tar", *sample("1", 1), ("x.png", b""), *sample("2", 0), *sample("3", 0)
            )
        assert shards("index", tmp_path / split)[0] == 0
    (tmp_path / "train/a.tar").unlink()
    broken = tmp_path / "val/b.tar"
    (shard,) = [one for one in index.load(tmp_path / "val").shards if one.name == "b.tar"]
    content = bytearray(broken.read_bytes())
    for offset in shard.offsets[1:]:
        content[offset] ^= 1
    broken.write_bytes(content)
    code, said, complaints = shards("verify", tmp_path, "--workers", 2)
    assert (code, said) == (2, [])
    member = "'x' at offset 2048: needs one image and one .cls side by side, has x.png"
    assert [line.removeprefix(f"error: {tmp_path}/").split("; ")[0].split(" (")[0] for line in complaints] == [
        f"train/a.tar: {member}", "train/a.tar: is missing", f"train/b.tar: {member}", f"train/c.tar: {member}",
        f"val/a.tar: {member}", f"val/b.tar: {member}", "val/b.tar: differs from the one that was indexed",
        f"val/b.tar: sample '2' at offset {shard.offsets[1]}: cannot be decoded",
        f"val/b.tar: sample '3' at offset {shard.offsets[2]}: cannot be decoded", f"val/c.tar: {member}",
    ]  # fmt: skip


BAD = {
    "unknown source": (["make", "imagefoldr", "{in}", "{out}"], "source 'imagefoldr'; did you mean 'imagefolder'?"),
    "source like no other": (["make", "zip", "{in}", "{out}"], "source 'zip'; valid: cifar10, cifar100, digits, "),
    "no images": (["make", "imagefolder", "{in}/c1", "{out}"], "no images in folders here"),
    "no such folder": (["make", "imagefolder", "{in}/x", "{out}"], "no such file or folder"),
    "no such tar": (["make", "wds", "{in}/x.tar", "{out}"], "x.tar: no tars here"),
    "nothing to read": (["make", "wds", "{out}"], "give the tars, or a folder that holds them, before the folder OUT"),
    "two folders": (["make", "imagefolder", "{in}", "{in}", "{out}"], "give one source"),
    "no archive": (["make", "cifar10", "{in}", "{out}"], "not the official python archive ("),
    "out is a file": (["make", "imagefolder", "{in}", "{in}/c1/01.jpg"], "01.jpg"),
    "per-shard": (["make", "imagefolder", "{in}", "{out}", "--per-shard", "0"], "--per-shard 0; it is at least 1"),
    "resize": (["make", "imagefolder", "{in}", "{out}", "--resize", "0"], "--resize 0; it is at least 1"),
    "workers": (["make", "imagefolder", "{in}", "{out}", "--workers", "-1"], "--workers -1; it is at least 1"),
    "quality": (["make", "imagefolder", "{in}", "{out}", "--quality", "101"], "--quality is at most 100"),
    "seed": (["make", "imagefolder", "{in}", "{out}", "--seed", "-1"], "--seed at least 0"),
    "large seed": (["make", "imagefolder", "{in}", "{out}", "--seed", str(2**64)], "below 2^63"),
    "verify nothing": (["verify", "{in}"], "no shards here; make them with `sparse-mlp-ds shards make"),
    "index nothing": (["index", "{in}"], "no .tar files here"),
    "no names": (["index", "{in}", "--classes", "{in}/names"], "names: No such file or directory"),
}  # fmt: skip


@pytest.mark.parametrize("arguments, said", BAD.values(), ids=BAD.keys())
def test_bad_usage_is_one_line_and_leaves_nothing(shards, tmp_path, arguments, said):
    names = {"in": image_folder(tmp_path / "in"), "out": tmp_path / "out"}
    before = sorted(tmp_path.rglob("*"))
    code, _, complaints = shards(*(argument.format(**names) for argument in arguments))
    assert code == 2
    assert len(complaints) == 1 and complaints[0].startswith("error: ") and said in complaints[0]
    assert [path for path in sorted(tmp_path.rglob("*")) if path.suffix] == [path for path in before if path.suffix]
    assert not list(tmp_path.rglob(".*"))


@pytest.fixture(scope="module")
def mpirun():
    """A working `mpirun`, with an mpi4py that finds its library."""
    command = shutil.which("mpirun")
    if command is None:
        pytest.skip("there is no mpirun here")
    probe = subprocess.run([sys.executable, "-c", "from mpi4py import MPI"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"mpi4py does not work here: {probe.stderr.splitlines()[-1]}")
    return [command, "--oversubscribe", "--allow-run-as-root", "-n", "2", *PYTHON, "shards", "make", "imagefolder"]


def under(mpirun, *arguments):
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [*mpirun, *map(str, arguments), "--workers", "1"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_nodes_under_mpirun_make_what_one_process_makes(mpirun, tmp_path):
    (split,) = raw_datasets.imagefolder([image_folder(tmp_path / "in")], tmp_path)
    done = under(mpirun, tmp_path / "in", tmp_path / "2/out", "--per-shard", 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{tmp_path}/2/out: 12 images in 6 tars, 3 classes"]
    writer.write(tmp_path / "1/out", "out", split, writer.Options(per_shard=2), 0, writer.Node(), lambda *now: None)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / f"{n}/out").iterdir()} for n in (1, 2))
    assert one == two
    assert json.loads(one["index.json"])["samples"] == 12


def test_a_node_that_fails_under_mpirun_ends_all(mpirun, tmp_path):
    image_folder(tmp_path / "in")
    write_tar(tmp_path / "out/a.tar", *sample("a", 1))  # which nobody may write over
    done = under(mpirun, tmp_path / "in", tmp_path / "out")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "holds tars already" in line
    assert "Traceback" not in done.stderr
