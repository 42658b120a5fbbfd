"""Making tars: which images they hold, with what bytes, mixed, and the same however the work is shared."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image, ImageOps

from sparse_mlp_ds.data import index
from sparse_mlp_ds.shards import raw_datasets, summary, verify, writer
from sparse_mlp_ds.shards.split import RawImage, Split
from sparse_mlp_ds.shards.writer import Node, Options
from tests.helpers import archives
from tests.helpers.processes import together
from tests.helpers.tars import contents, picture, refusal, sample, write_tar


def ignore(done, total):
    pass


def make(folder, split, workers=0, node=Node(), progress=ignore, **options):
    return writer.write(folder, "some", split, Options(**options), workers, node, progress)


def split_of(folder, files):
    """A split of image files, {name: (label, bytes)}; keys are the names without suffix."""
    folder.mkdir(exist_ok=True)
    found = []
    for name, (label, content) in files.items():
        (folder / name).write_bytes(content)
        found.append(RawImage(name.split(".")[0], label, str(folder / name), 0, len(content)))
    return Split("", [f"c{n}" for n in range(max(label for label, _ in files.values()) + 1)], found)


def members(made):
    """{name: bytes} of everything in the tars."""
    found = {}
    for shard in made.shards:
        with tarfile.open(shard.path) as tar:
            found |= {m.name: tar.extractfile(m).read() for m in tar}
    return found


def opened(content):
    return Image.open(io.BytesIO(content))


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(width, height):
    """A picture of which every corner has another colour, and JPEG changes little."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([255 * x / width, 255 * y / height, 0 * x + 60], -1).astype(np.uint8))


def close(image, expected, within=6):
    difference = np.abs(np.asarray(image.convert("RGB"), int) - np.asarray(expected.convert("RGB"), int))
    return difference.mean() < within


def shards_of(kind, *sources, tmp_path):
    """Every split of a source, made into tars and read again: {name: index}."""
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    splits = raw_datasets.KINDS[kind](list(sources), work)
    return {s.name: make(tmp_path / "made" / s.name, s, per_shard=4) for s in splits}


def test_imagenets_tars_hold_the_archives_bytes(tmp_path):
    made = shards_of("imagenet", archives.imagenet(tmp_path / "official"), tmp_path=tmp_path)
    assert {name: len(found) for name, found in made.items()} == {"train": 12, "val": 5}
    val = members(made["val"])
    for n, label in enumerate((0, 2, 1, 1, 2), start=1):
        assert val[f"ILSVRC2012_val_{n:08d}.jpg"] == picture(10 * n, "jpeg")
        assert val[f"ILSVRC2012_val_{n:08d}.cls"] == str(label).encode()
    train = members(made["train"])
    for label, wnid in enumerate(("n01", "n03", "n07")):
        for n in range(4):
            assert train[f"{wnid}_{n}.jpg"] == picture(10 * label, "jpeg")
            assert train[f"{wnid}_{n}.cls"] == str(label).encode()
    assert made["train"].classes == ["goldfish", "tabby", "pickup"]


@pytest.mark.parametrize("kind", [10, 100])
def test_cifars_tars_hold_its_pixels_without_loss(tmp_path, kind):
    archive, expected = archives.cifar(tmp_path, kind)
    for name, made in shards_of(f"cifar{kind}", archive, tmp_path=tmp_path).items():
        found = members(made)
        for n, (pixels, label) in enumerate(zip(*expected[name], strict=True)):
            image = opened(found[f"{name}{n:05d}.png"])
            assert image.mode == "RGB" and np.array_equal(np.asarray(image).transpose(2, 0, 1), pixels)
            assert int(found[f"{name}{n:05d}.cls"]) == label


def test_tars_of_others_are_remade_with_the_same_images(tmp_path):
    write_tar(tmp_path / "a.tar", *sample("x/1", 2), *sample("x/2", 0))
    write_tar(tmp_path / "b.tar.gz", *sample("x/1", 1), mode="w:gz")
    made = shards_of("wds", tmp_path / "a.tar", tmp_path / "b.tar.gz", tmp_path=tmp_path)[""]
    assert members(made) == dict([*sample("x/1", 2), *sample("x/2", 0), *sample("b_x/1", 1)])


def test_without_resize_files_are_copied_as_they_are(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    files = {
        "jpeg.png": encoded(gradient(300, 200), "jpeg", exif=turned),  # whatever it is called
        "png.png": encoded(Image.fromarray(np.full((4, 4), 60000, np.uint16)), "png"),
        "webp.webp": encoded(gradient(30, 20), "webp"),
        "cmyk.jpg": encoded(gradient(30, 20).convert("CMYK"), "jpeg"),
    }
    found = members(make(tmp_path / "made", split_of(tmp_path / "in", {k: (0, v) for k, v in files.items()})))
    suffixes = {"jpeg": "jpg", "png": "png", "webp": "webp", "cmyk": "jpg"}
    for name, content in files.items():
        key = name.split(".")[0]
        assert found.pop(f"{key}.{suffixes[key]}") == content
    assert set(found.values()) == {b"0"}


@pytest.mark.parametrize("kind", ["gif", "bmp", "tiff"])
def test_what_shards_cannot_hold_becomes_a_png_of_the_same_pixels(tmp_path, kind):
    image = gradient(30, 20).convert("P" if kind == "gif" else "RGB")
    found = members(make(tmp_path / "made", split_of(tmp_path / "in", {f"x.{kind}": (0, encoded(image, kind))})))
    assert sorted(found) == ["x.cls", "x.png"]
    assert opened(found["x.png"]).format == "PNG"
    assert np.array_equal(np.asarray(opened(found["x.png"])), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    "size, expected",
    [((300, 200), (96, 64)), ((200, 300), (64, 96)), ((1000, 64), None), ((40, 30), None), ((65, 650), (64, 640))],
)
def test_with_resize_the_shorter_side_of_larger_images_gets_that_long(tmp_path, size, expected):
    content = encoded(gradient(*size), "png")
    made = make(tmp_path / "made", split_of(tmp_path / "in", {"x.png": (0, content)}), resize=64)
    found = members(made)
    if expected is None:
        assert found["x.png"] == content
        return
    image = opened(found["x.jpg"])
    assert (image.size, image.format, image.mode) == (expected, "JPEG", "RGB")
    assert close(image, gradient(*expected))


def turned_jpeg():
    turned = Image.Exif()
    turned[0x0112] = 6  # is to be turned right by a quarter
    return encoded(ImageOps.exif_transpose(gradient(160, 240)).rotate(90, expand=True), "jpeg", exif=turned)


ODD = {
    "cmyk": lambda: encoded(gradient(160, 240).convert("CMYK"), "jpeg"),
    "exif": turned_jpeg,
    "palette": lambda: encoded(gradient(160, 240).quantize(256), "png"),
    "with alpha": lambda: encoded(gradient(160, 240).convert("RGBA"), "png"),
    "huge jpeg": lambda: encoded(gradient(1600, 2400), "jpeg", quality=95),  # decoded at a quarter of its size
}


@pytest.mark.parametrize("content", ODD.values(), ids=ODD.keys())
def test_odd_images_are_resized_upright_and_in_their_colours(tmp_path, content):
    found = members(make(tmp_path / "made", split_of(tmp_path / "in", {"x.jpg": (0, content())}), resize=64))
    image = opened(found["x.jpg"])
    assert (image.size, image.mode, image.getexif().get(0x0112)) == ((64, 96), "RGB", None)
    assert close(image, gradient(64, 96), within=8)


@pytest.mark.parametrize("top, kind", [(255, np.uint8), (65535, np.uint16)], ids=["8 bits", "16 bits"])
def test_grey_images_keep_their_brightness(tmp_path, top, kind):
    grey = np.linspace(0, top, 160 * 240).reshape(240, 160).astype(kind)
    content = encoded(Image.fromarray(grey), "png")
    found = members(make(tmp_path / "made", split_of(tmp_path / "in", {"x.png": (0, content)}), resize=64))
    rows = np.asarray(opened(found["x.jpg"]), int).mean(axis=(1, 2))
    assert np.abs(rows - np.linspace(0, 255, 96)).max() < 5


def test_large_jpegs_keep_the_detail_that_fits(tmp_path):
    stripes = (np.arange(1600) // 4 % 2 * 255).astype(np.uint8)
    content = encoded(Image.fromarray(np.tile(stripes, (1600, 1))), "jpeg", quality=95)
    found = members(make(tmp_path / "made", split_of(tmp_path / "in", {"x.jpg": (0, content)}), resize=400))
    assert np.asarray(opened(found["x.jpg"])).std() > 60  # black and white lines, not a grey area


def test_better_quality_takes_more_bytes(tmp_path):
    split = split_of(tmp_path / "in", {"x.png": (0, encoded(Image.effect_noise((200, 200), 90), "png"))})
    sizes = [int(make(tmp_path / f"{q}", split, resize=64, quality=q).shards[0].sizes[0]) for q in (30, 80, 100)]
    assert sizes[0] < sizes[1] < sizes[2]


def test_what_cannot_be_decoded_is_left_out_and_named(tmp_path):
    jpeg = picture(9, "jpeg", (90, 90))
    files = {"a.png": (0, picture(1)), "empty.jpg": (0, b""), "text.jpg": (1, b"hello"), "b.png": (1, picture(2))}
    made = make(tmp_path / "made", split_of(tmp_path / "in", files))
    assert sorted(members(made)) == ["a.cls", "a.png", "b.cls", "b.png"]
    defects = made.shards[0].bad_entries
    assert sorted(d.key for d in defects) == ["empty", "text"]
    assert all(d.reason.startswith("left out: cannot be decoded (") for d in defects)
    assert len(verify.verify(made.shards[0])) == 2
    made = make(tmp_path / "cut", split_of(tmp_path / "in", files | {"cut.jpg": (0, jpeg[:-300])}), resize=64)
    assert sorted(d.key for d in made.shards[0].bad_entries) == ["cut", "empty", "text"]


def many(tmp_path, count=50, classes=5):
    """A split of small images sorted by class."""
    return split_of(tmp_path / "in", {f"{n:03d}.png": (n * classes // count, picture(n * 5)) for n in range(count)})


def test_a_source_sorted_by_class_comes_out_mixed(tmp_path):
    split = many(tmp_path)
    labels = [one.label for one in split.images]
    assert labels == sorted(labels)
    made = make(tmp_path / "made", split, per_shard=10)
    assert not summary.sorted_by_class(made)
    assert all(len(set(shard.labels.tolist())) > 2 for shard in made.shards)
    assert sorted(contents(made)) == sorted(contents(make(tmp_path / "other", split, per_shard=10, seed=1)))
    assert contents(made) != contents(index.load(tmp_path / "other"))


@pytest.mark.parametrize(
    "count, per_shard, sizes", [(50, 10, [10] * 5), (10, 4, [4, 3, 3]), (3, 10, [3]), (3, 1, [1] * 3)]
)
def test_tars_are_filled_evenly_and_not_above_their_limit(tmp_path, count, per_shard, sizes):
    made = make(tmp_path / "made", many(tmp_path, count), per_shard=per_shard)
    assert [len(shard) for shard in made.shards] == sizes
    assert [shard.name for shard in made.shards] == [f"some-{n:06d}.tar" for n in range(len(sizes))]
    assert sorted(p.name for p in (tmp_path / "made").iterdir()) == ["index.json", *(s.name for s in made.shards)]
    assert index.load(tmp_path / "made").record() == made.record()


def tars(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*")) if path.is_file()}


def test_the_same_bytes_come_out_with_and_without_workers(tmp_path):
    split, finished = many(tmp_path), []
    for workers in (0, 2):
        make(tmp_path / f"{workers}", split, workers, progress=lambda *now: finished.append(now), per_shard=6)
        assert finished[-1] == (9, 9)
    assert tars(tmp_path / "0") == tars(tmp_path / "2")


def node(folder, split, rank, barrier):
    make(folder, split, node=Node(rank, 2, barrier.wait), per_shard=6)


def test_nodes_that_share_the_work_leave_the_same_bytes(tmp_path):
    split = many(tmp_path)
    assert together(node, *[(tmp_path / "2", split, rank) for rank in range(2)]) == [0, 0]
    make(tmp_path / "1", split, per_shard=6)
    assert tars(tmp_path / "1") == tars(tmp_path / "2")


def test_nothing_to_make_is_refused(tmp_path):
    assert "there is no image to put there" in refusal(make, tmp_path / "made", Split("", ["c"], []))
    assert not (tmp_path / "made").exists()
