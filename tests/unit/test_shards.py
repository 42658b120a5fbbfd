"""Shards: the index round trip, and one line naming tar and sample for everything that can be wrong."""

import io
import json
import os
import tarfile

import pytest
from PIL import Image

from sparse_mlp_ds.data import index, shards
from sparse_mlp_ds.errors import UserError


def png(value=100):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 255 - value)).save(buffer, "png")
    return buffer.getvalue()


def write_tar(path, *members, mode="w"):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def sample(key, label, suffix="png"):
    return (f"{key}.{suffix}", png(label)), (f"{key}.cls", str(label).encode())


def refusal(function, *arguments):
    with pytest.raises(UserError) as error:
        function(*arguments)
    (line,) = str(error.value).splitlines()
    return line


def test_tars_of_others_are_indexed(tmp_path):
    write_tar(tmp_path / "b.tar", *sample("x/1", 2), *sample("x/2", 0, "PNG"))
    write_tar(tmp_path / "a.tar", *reversed(sample("n01/c", 1)), *sample("n.01/d", 2))
    made = shards.make_index(tmp_path)
    assert [(s.file, s.keys, s.labels) for s in made.shards] == [
        ("a.tar", ["n01/c", "n.01/d"], [1, 2]), ("b.tar", ["x/1", "x/2"], [2, 0]),
    ]  # fmt: skip
    assert made.classes == ["0", "1", "2"]
    assert index.load(tmp_path) == made
    assert shards.verify(tmp_path) == []


def test_written_shards_are_the_same_bytes_each_time(tmp_path):
    samples = [shards.Sample(f"{n:03d}", png(n), "png", n % 3) for n in range(5)]
    for name in ("one", "two"):
        made = shards.write(tmp_path / name, "s", samples, ["a", "b", "c"], per_shard=2)
        assert index.load(tmp_path / name) == made
        assert [len(shard.keys) for shard in made.shards] == [2, 2, 1]
        assert sorted(p.name for p in (tmp_path / name).iterdir()) == ["index.json", *(s.file for s in made.shards)]
    for shard in made.shards:
        assert (tmp_path / "one" / shard.file).read_bytes() == (tmp_path / "two" / shard.file).read_bytes()


IMAGE, LABEL = sample("a", 1)
B_IMAGE, B_LABEL = sample("b", 0)
BAD_TARS = {
    "no .cls": ([IMAGE, LABEL, B_IMAGE], ["sample 'b' at offset 2048", "needs one image and one .cls", "has b.png"]),
    "no image": ([IMAGE, LABEL, B_LABEL], ["sample 'b' at offset 2048", "has b.cls"]),
    "two images": ([IMAGE, ("a.jpg", png()), LABEL], ["sample 'a' at offset 0", "has a.png, a.jpg, a.cls"]),
    "label": ([IMAGE, LABEL, B_IMAGE, ("b.cls", b"cat")], ["sample 'b' at offset 2048", "b'cat' is not a class"]),
    "negative label": ([IMAGE, ("a.cls", b"-1")], ["sample 'a' at offset 0", "b'-1' is not a class number"]),
    "empty label": ([IMAGE, ("a.cls", b"")], ["sample 'a' at offset 0", "b'' is not a class number"]),
    "empty image": ([("a.png", b""), LABEL], ["sample 'a' at offset 0", "the image is empty"]),
    "repeated key": ([IMAGE, LABEL, B_IMAGE, B_LABEL, IMAGE, LABEL], ["key 'a' names two samples"]),
    "interleaved": ([IMAGE, B_IMAGE, LABEL, B_LABEL], ["sample 'a' at offset 0", "side by side, has a.png"]),
}


@pytest.mark.parametrize("members, said", BAD_TARS.values(), ids=BAD_TARS.keys())
def test_a_bad_tar_is_named_with_its_sample(tmp_path, members, said):
    write_tar(tmp_path / "bad.tar", *members)
    line = refusal(shards.make_index, tmp_path)
    assert line.startswith(f"{tmp_path / 'bad.tar'}: ")
    assert all(part in line for part in said), line
    assert not (tmp_path / index.FILE_NAME).exists()


@pytest.mark.parametrize("cut", [0, 100, 600, 2600])
def test_a_truncated_tar_is_named(tmp_path, cut):
    write_tar(tmp_path / "bad.tar", IMAGE, LABEL, B_IMAGE, B_LABEL)
    os.truncate(tmp_path / "bad.tar", cut)
    assert refusal(shards.make_index, tmp_path).startswith(f"{tmp_path / 'bad.tar'}: not a readable plain tar")


def test_a_compressed_tar_is_named(tmp_path):
    write_tar(tmp_path / "bad.tar", IMAGE, LABEL, mode="w:gz")
    assert refusal(shards.make_index, tmp_path).startswith(f"{tmp_path / 'bad.tar'}: not a readable plain tar")


def test_a_folder_without_tars_is_named(tmp_path):
    assert refusal(shards.make_index, tmp_path).startswith(f"{tmp_path}: no .tar files here")


def test_verify_names_a_flipped_byte(tmp_path):
    write_tar(tmp_path / "a.tar", IMAGE, LABEL, B_IMAGE, B_LABEL)
    shard = shards.make_index(tmp_path).shards[0]
    content = bytearray((tmp_path / "a.tar").read_bytes())
    content[shard.offsets[1]] ^= 1
    (tmp_path / "a.tar").write_bytes(content)
    changed, undecodable = shards.verify(tmp_path)
    assert changed.startswith(f"{tmp_path / 'a.tar'}: differs from the one that was indexed")
    assert undecodable.startswith(f"{tmp_path / 'a.tar'}: sample 'b' at offset {shard.offsets[1]}: ")


def test_an_index_that_is_not_there_is_answered_with_the_command_that_makes_it(tmp_path):
    assert "no shards here; make them with `sparse-mlp-ds shards make" in refusal(index.load, tmp_path / "train")
    write_tar(tmp_path / "a.tar", IMAGE, LABEL)
    expected = f"{tmp_path}: has tars but no index; run `sparse-mlp-ds shards index {tmp_path}`"
    assert refusal(index.load, tmp_path) == expected


DAMAGE = {
    "size": (lambda r: r["shards"][0].update(bytes=1), "a.tar: has 10240 bytes, the index says 1; run"),
    "missing tar": (lambda r: r["shards"][0].update(file="z.tar"), "z.tar: is missing; run"),
    "path": (lambda r: r["shards"][0].update(file="../a.tar"), "shard name '../a.tar' leaves the folder"),
    "absolute path": (lambda r: r["shards"][0].update(file="/a.tar"), "shard name '/a.tar' leaves the folder"),
    "format": (lambda r: r.update(format=2), "index.json: damaged (format 2, this version reads 1)"),
    "key": (lambda r: r.pop("shards"), "index.json: damaged ('shards'); run"),
    "field": (lambda r: r["shards"][0].pop("labels"), "index.json: damaged"),
}


@pytest.mark.parametrize("change, said", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_index_is_named(tmp_path, change, said):
    write_tar(tmp_path / "a.tar", IMAGE, LABEL)
    shards.make_index(tmp_path)
    record = json.loads((tmp_path / index.FILE_NAME).read_text())
    change(record)
    (tmp_path / index.FILE_NAME).write_text(json.dumps(record))
    line = refusal(index.load, tmp_path)
    assert line.startswith(str(tmp_path))
    assert said in line


def test_labels_beyond_the_classes_name_the_sample(tmp_path):
    write_tar(tmp_path / "a.tar", *sample("a", 1), *sample("b", 7), *sample("c", 9))
    found = shards.make_index(tmp_path)
    line = refusal(index.check_labels, found, 7)
    assert line.startswith(f"{tmp_path / 'a.tar'}: sample 'b' has label 7, outside the 7 classes")
    assert "set data.classes to at least 8" in line
    index.check_labels(found, 10)


def test_a_tar_cut_between_two_samples_is_named(tmp_path):
    write_tar(tmp_path / "a.tar", *sample("one", 1), *sample("two", 2))
    content = (tmp_path / "a.tar").read_bytes()
    second = content.index(b"two.png")
    for cut in (second, second + 200):  # tarfile takes either for the end
        (tmp_path / "a.tar").write_bytes(content[:cut])
        assert "a.tar: is cut off at byte" in refusal(shards.make_index, tmp_path)


def test_a_tar_without_samples_is_named(tmp_path):
    write_tar(tmp_path / "a.tar")
    assert "a.tar: holds no samples" in refusal(shards.make_index, tmp_path)
