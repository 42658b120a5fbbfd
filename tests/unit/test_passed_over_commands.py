"""What `sparse-mlp-ds shards` says of what it passes over, and what it makes all the same."""

import pytest

from sparse_mlp_ds.data import index, sources
from sparse_mlp_ds.shards import scan
from tests.helpers.raw_sources import a_folder, layout, splits
from tests.helpers.tars import sample, write_tar

JUNK = b"\0\5\26\7\0\2\0\0Mac OS X        "


def test_the_command_tells_what_it_passed_over_and_what_it_made(shards, tmp_path):
    kind, make = splits("train/ant/x.heic", "train/ant/._0.jpg", val="test")
    (source,) = make(tmp_path)
    code, said, complaints = shards("make", kind, source, tmp_path / "out", "--workers", 1)
    assert (code, complaints) == (0, [])
    assert said == [
        f"passed over 1: hidden ({source}/train/ant/._0.jpg)",
        f"passed over 1: no image by its suffix .heic ({source}/train/ant/x.heic)",
        f"{tmp_path}/out/train: 2 images in 1 tars, 2 classes",
        f"{tmp_path}/out/val: made of {source}/test",
        f"{tmp_path}/out/val: 2 images in 1 tars, 2 classes",
    ]


@pytest.mark.parametrize("inside", ["", "out", "ant/out"])
def test_a_folder_to_write_inside_the_folder_to_read_is_refused(shards, tmp_path, inside):
    kind, make = a_folder()
    (source,) = make(tmp_path)
    before = sorted(source.rglob("*"))
    code, _, (line,) = shards("make", kind, source, source / inside)
    assert code == 2 and "where it would become a class; name another OUT" in line
    assert sorted(source.rglob("*")) == before


def test_a_refused_make_leaves_no_folder(shards, tmp_path):
    assert shards("make", "imagefolder", layout(tmp_path / "in", "ant/"), tmp_path / "out")[0] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_a_data_set_of_which_no_image_can_be_decoded_is_an_error_with_its_reasons(shards, tmp_path):
    source = layout(tmp_path / "in", "ant/0.jpg=x", "ant/1.jpg=x", "bee/0.jpg=")
    for _ in range(2):  # the second finds everything finished
        code, said, (line,) = shards("make", "imagefolder", source, tmp_path / "out", "--workers", 1)
        assert (code, said) == (2, [])
        assert line.startswith(f"error: {tmp_path}/out: not one image can be used; passed over 3: left out: cannot be")


def test_classes_without_images_are_told(shards, tmp_path):
    write_tar(tmp_path / "a.tar", *sample("0", 0), *sample("1", 3))
    code, said, _ = shards("index", tmp_path)
    assert code == 0 and f"{tmp_path}: 2 of 4 classes have no image, such as '1'" in said
    write_tar(tmp_path / "a.tar", *sample("0", 0), *sample("1", 0))
    code, said, _ = shards("index", tmp_path)
    assert code == 0 and said[1].startswith(f"{tmp_path}: there is one class only, '0'; ")


@pytest.mark.parametrize("members", [[("._0.png", JUNK)], [("x.avif", b"x"), ("x.cls", b"1")]])
def test_an_index_of_tars_without_samples_is_an_error_with_its_reasons(shards, tmp_path, members):
    write_tar(tmp_path / "a.tar", *members)
    layout(tmp_path, "._a.tar=x", "b.tar.gz=x")
    code, _, (line,) = shards("index", tmp_path)
    assert code == 2 and "its 1 tars hold no sample, a KEY.jpg beside a KEY.cls; passed over" in line
    assert all(part in line for part in ("hidden (", "no tar by its suffix .gz ("))
    assert ("needs one image and one .cls side by side" in line) == (len(members) > 1)


def test_tars_of_macos_train_as_if_its_own_files_were_not_there(tmp_path):
    """Its `._` members lie between those of every sample, and are no bad samples that could end a run."""
    members = [((f"./._{m[0]}", JUNK), (f"./{m[0]}", m[1])) for n in range(6) for m in sample(f"{n}", n % 2)]
    shard = scan.scan(write_tar(tmp_path / "a.tar", *(one for pair in members for one in pair)))
    assert len(shard) == 6 and shard.bad_entries == ()


def test_tars_that_the_index_does_not_list_are_told(shards, tmp_path):
    for name in "ab":
        write_tar(tmp_path / f"{name}.tar", *sample(name, 0), *sample(f"{name}1", 1))
    assert shards("index", tmp_path)[0] == 0
    assert shards("verify", tmp_path)[0] == 0
    for name in "cd":
        write_tar(tmp_path / f"{name}.tar", *sample(name, 1))
    layout(tmp_path, "._c.tar=x")
    code, _, (line,) = shards("verify", tmp_path)
    assert code == 2
    assert line.startswith(f"error: {tmp_path}: not read, because the index does not list them: 2 tars (such as c.tar)")
    assert line.removeprefix("error: ") == sources.unlisted(index.load(tmp_path), tmp_path)
