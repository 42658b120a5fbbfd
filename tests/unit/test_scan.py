"""Scanning a tar: every sample that is sound is listed where it is, everything else is a defect with its place."""

import tarfile

import numpy as np
import pytest

from sparse_mlp_ds import files
from sparse_mlp_ds.shards import scan
from tests.helpers.tars import colour, contents, link, picture, sample, write_tar

BLOCK = tarfile.BLOCKSIZE
IMAGE, LABEL = sample("a", 1)
B_IMAGE, B_LABEL = sample("b", 0)
C = sample("c", 7)
STEP = 2048
"""Bytes of a sample: two headers, two contents, each one block."""


def scanned(path):
    """Keys, and (key, offset, reason) of the defects; whatever is listed lies inside and is what it was."""
    shard = scan.scan(path)
    assert len(shard.keys) == len(shard.offsets) == len(shard.sizes) == len(shard.labels)
    content = path.read_bytes()
    for offset, size in zip(shard.offsets.tolist(), shard.sizes.tolist(), strict=True):
        assert offset >= 0 and size > 0 and offset + size <= len(content)
    return [shard.key(n) for n in range(len(shard))], [(d.key, d.offset, d.reason) for d in shard.bad_entries]


def damage_header(path, at):
    content = bytearray(path.read_bytes())
    content[at + 20] ^= 1  # its checksum no longer holds
    path.write_bytes(content)


def test_a_sound_tar_has_samples_and_no_defects(tmp_path):
    path = write_tar(tmp_path / "a.tar", *sample("x/1", 2), *sample("x/2", 0, "PNG"), *reversed(sample("n.01/c", 12)))
    shard = scan.scan(path)
    assert (shard.name, shard.path, shard.bytes, shard.bad_entries) == ("a.tar", str(path), path.stat().st_size, ())
    assert shard.sha256 == files.sha256(path)
    assert shard.labels.tolist() == [2, 0, 12]
    with tarfile.open(path) as tar:
        images = [m for m in tar if not m.name.endswith("cls")]
    assert shard.offsets.tolist() == [m.offset_data for m in images]
    assert shard.sizes.tolist() == [m.size for m in images]
    assert [shard.key(n) for n in range(3)] == ["x/1", "x/2", "n.01/c"]


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "webp", "JPEG"])
def test_images_go_by_their_usual_suffixes(tmp_path, suffix):
    assert scanned(write_tar(tmp_path / "a.tar", *sample("a", 1, suffix))) == (["a"], [])


def test_other_members_of_a_sample_do_not_hurt(tmp_path):
    path = write_tar(tmp_path / "a.tar", ("a.json", b"{}"), IMAGE, LABEL, ("a.seg.png", picture()), B_IMAGE, B_LABEL)
    assert scanned(path) == (["a", "b"], [])


@pytest.mark.parametrize("text", [b"7", b"7\n", b" 007 ", b"7\r\n", b"\xef\xbb\xbf7"])
def test_labels_may_have_blanks_zeros_and_a_byte_order_mark(tmp_path, text):
    assert scan.scan(write_tar(tmp_path / "a.tar", IMAGE, ("a.cls", text))).labels.tolist() == [7]


NO_NUMBER = "label is not a class number, has "
LINK = "link in place of a file, b.png; pack with tar's --dereference and --hard-dereference"
BETWEEN = {
    "no .cls": ([B_IMAGE], [("b", STEP, "needs one image and one .cls side by side, has b.png")]),
    "no image": ([B_LABEL], [("b", STEP, "needs one image and one .cls side by side, has b.cls")]),
    "two images": (
        [B_IMAGE, ("b.jpg", picture()), B_LABEL],
        [("b", STEP, "needs one image and one .cls side by side, has b.png, b.jpg, b.cls")],
    ),
    "neither": ([("README", b"hello")], [("README", STEP, "needs one image and one .cls side by side, has README")]),
    "empty image": ([("b.png", b""), B_LABEL], [("b", STEP, "empty image")]),
    "word": ([B_IMAGE, ("b.cls", b"cat")], [("b", STEP, NO_NUMBER + "b'cat'")]),
    "negative label": ([B_IMAGE, ("b.cls", b"-1")], [("b", STEP, NO_NUMBER + "b'-1'")]),
    "fraction": ([B_IMAGE, ("b.cls", b"1.0")], [("b", STEP, NO_NUMBER + "b'1.0'")]),
    "empty label": ([B_IMAGE, ("b.cls", b"")], [("b", STEP, NO_NUMBER + "b''")]),
    "a label beyond any class": ([B_IMAGE, ("b.cls", b"123456789")], [("b", STEP, NO_NUMBER + "b'123456789'")]),
    "digits of another script": ([B_IMAGE, ("b.cls", "٣".encode())], [("b", STEP, NO_NUMBER + r"b'\xd9\xa3'")]),
    "repeated key": ([IMAGE, LABEL], [("a", STEP, "duplicate key")]),
    "interleaved": (
        [B_IMAGE, ("d.png", picture()), B_LABEL, ("d.cls", b"1")],
        [(key, at, "members of one sample are not side by side") for key, at in (("b", STEP), ("d", STEP + 1024))],
    ),
    "links": ([link("b.png", "a.png"), link("b.cls", "a.cls", tarfile.LNKTYPE)], [("b", STEP, LINK)]),
    "folders": ([link("some/", "", tarfile.DIRTYPE)], []),
    "a link for an image": (
        [link("b.png", "a.png"), B_LABEL],
        [("b", STEP, LINK)],
    ),
}


@pytest.mark.parametrize("members, defects", BETWEEN.values(), ids=BETWEEN.keys())
def test_what_is_no_sample_is_named_and_its_neighbours_are_kept(tmp_path, members, defects):
    path = write_tar(tmp_path / "a.tar", IMAGE, LABEL, *members, *C)
    assert scanned(path) == (["a", "c"], defects)
    assert scan.scan(path).labels.tolist() == [1, 7]


@pytest.mark.parametrize(
    "cut, keys, defects",
    [
        (0, [], [("", 0, "cut off")]),
        (100, [], [("", 0, "cut off")]),
        (BLOCK + 9, [], [("", BLOCK + 9, "cut off"), ("a", 0, "needs one image and one .cls side by side, has a.png")]),
        (1024, [], [("a", 0, "needs one image and one .cls side by side, has a.png"), ("", 1024, "cut off")]),
        (STEP, ["a"], [("", STEP, "cut off")]),  # between two samples, which tarfile takes for the end
        (STEP + 200, ["a"], [("", STEP, "cut off")]),  # in a header, likewise
        (2 * STEP, ["a", "b"], [("", 2 * STEP, "cut off")]),  # only its end is missing
        (2 * STEP + BLOCK, ["a", "b"], [("", 2 * STEP, "cut off")]),
    ],
)
def test_what_lies_before_the_cut_is_kept(tmp_path, cut, keys, defects):
    path = write_tar(tmp_path / "a.tar", IMAGE, LABEL, B_IMAGE, B_LABEL)
    path.write_bytes(path.read_bytes()[:cut])
    found, named = scanned(path)
    assert (found, sorted(named)) == (keys, sorted(defects))


def test_a_sample_whose_label_is_cut_off_is_named(tmp_path):
    path = write_tar(tmp_path / "a.tar", IMAGE, LABEL, B_IMAGE, B_LABEL)
    path.write_bytes(path.read_bytes()[: 2 * STEP - BLOCK])
    assert scanned(path) == (["a"], [("b", STEP, "cut off"), ("", 2 * STEP - BLOCK, "cut off")])


def test_samples_behind_a_damaged_header_are_found_again(tmp_path):
    path = write_tar(tmp_path / "a.tar", IMAGE, LABEL, B_IMAGE, B_LABEL, *C)
    damage_header(path, STEP)
    assert scanned(path) == (
        ["a", "c"],
        [
            ("", STEP, "damaged header, 1024 bytes passed over"),
            ("b", STEP + 1024, "needs one image and one .cls side by side, has b.cls"),
        ],
    )


def test_several_damaged_headers_cost_only_their_samples(tmp_path):
    path = write_tar(tmp_path / "a.tar", *(member for n in range(9) for member in sample(f"{n}", n)))
    for at in (0, 3 * STEP, 3 * STEP + 1024, 8 * STEP):
        damage_header(path, at)
    keys, defects = scanned(path)
    assert keys == ["1", "2", "4", "5", "6", "7"]
    assert [(at, reason) for key, at, reason in defects if not key] == [
        (0, "damaged header, 1024 bytes passed over"),
        (3 * STEP, "damaged header, 2048 bytes passed over"),
        (8 * STEP, "damaged header, 1024 bytes passed over"),
    ]


def test_a_tar_of_endless_damage_is_given_up_in_a_line(tmp_path):
    path = write_tar(tmp_path / "a.tar", *(member for n in range(150) for member in sample(f"{n}", n)))
    for n in range(1, 150):
        damage_header(path, n * STEP)
    keys, defects = scanned(path)
    assert keys == ["0"]
    assert defects[-1][2] == "more than 100 damaged headers, the rest is passed over"


def test_samples_behind_a_hole_of_zeros_are_found_again(tmp_path):
    path = write_tar(tmp_path / "a.tar", IMAGE, LABEL, B_IMAGE, B_LABEL, *C)
    content = bytearray(path.read_bytes())
    content[STEP : 2 * STEP] = bytes(STEP)  # as an unfinished download leaves; tarfile takes it for the end
    path.write_bytes(content)
    assert scanned(path) == (["a", "c"], [("", STEP, f"damaged header, {STEP} bytes passed over")])


def test_a_compressed_tar_is_named(tmp_path):
    path = write_tar(tmp_path / "a.tar", *(m for n in range(99) for m in sample(f"{n}", n)), mode="w:gz")
    keys, [(key, at, reason)] = scanned(path)
    assert (keys, key, at) == ([], "", 0)
    assert reason.startswith("not a readable plain tar (")


def header(name, size, kind=b"0"):
    """A header with a correct checksum around any size field; a sparse one claims to hold 9 bytes."""
    block = bytearray(tarfile.TarInfo(name).tobuf()[:BLOCK])
    block[124:136], block[156:157], block[483:495] = size, kind, b"00000000011\0"
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


HOSTILE = {
    "backwards": b"\xff" * 10 + (-512 & 0xFFFF).to_bytes(2, "big"),
    "onto itself": b"\xff" * 10 + (-1024 & 0xFFFF).to_bytes(2, "big"),
    "a little negative": b"\xff" * 11 + b"\x9c",
    "negative octal": b"-0000000010\0",
    "more than 64 bits": b"\x80" + b"\x7f" * 11,
    "exactly 63 bits": b"\x80" + bytes(3) + b"\x7f" + b"\xff" * 7,
    "no number": b"abcdefghijkl",
}


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_SPARSE], ids=["regular", "sparse"])
@pytest.mark.parametrize("size", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_size_neither_raises_nor_leads_in_circles(tmp_path, size, kind):
    path = write_tar(tmp_path / "a.tar", IMAGE, LABEL, B_LABEL, *C)
    content = path.read_bytes()
    path.write_bytes(content[:STEP] + header("b.png", size, kind) + content[STEP:])
    keys, defects = scanned(path)
    assert keys in (["a", "c"], ["a"])  # a member that claims to be larger than the file takes the rest with it
    assert any(at >= STEP for _, at, _ in defects)


def test_a_name_that_is_no_text_becomes_one(tmp_path):
    path = write_tar(tmp_path / "a.tar", (b"\xff\xfe.png".decode(errors="surrogateescape"), picture()), *C)
    content = path.read_bytes()
    assert b"\xff\xfe.png" in content
    keys, [(key, _, reason)] = scanned(path)
    assert (keys, key) == (["c"], r"\xff\xfe")
    assert reason.endswith(r"has \xff\xfe.png")


def test_a_last_header_of_zeros_is_not_taken_for_the_end(tmp_path):
    path = write_tar(tmp_path / "a.tar", IMAGE, LABEL, B_IMAGE, B_LABEL)
    content = bytearray(path.read_bytes())
    content[STEP + 1024 : STEP + 1024 + BLOCK] = bytes(BLOCK)
    path.write_bytes(content)
    keys, [_, (_, at, reason)] = scanned(path)
    assert (keys, at) == (["a"], STEP + 1024)
    assert reason.startswith("damaged header, ")


def mutate(content, random):
    """Change, cut or insert something."""
    content = bytearray(content)
    at = int(random.integers(len(content)))
    kind = random.integers(5)
    if kind == 0:
        for place in random.integers(len(content), size=random.integers(1, 20)):
            content[place] ^= 1 << int(random.integers(8))
    elif kind == 1:
        del content[at:]
    elif kind == 2:
        content[at:at] = random.bytes(int(random.integers(1, 1500)))
    elif kind == 3:
        del content[at : at + int(random.integers(1, 1500))]
    else:  # a header's field, with a checksum that holds
        block = at // BLOCK * BLOCK
        field = content[block : block + BLOCK].ljust(BLOCK, b"\0")
        field[124 + int(random.integers(40))] = int(random.integers(256))
        field[148:156] = b" " * 8
        field[148:156] = f"{sum(field):06o}\0 ".encode()
        content[block : block + BLOCK] = field
    return bytes(content)


def test_no_mutation_of_a_tar_makes_it_raise_or_list_what_is_not_there(tmp_path):
    long = "folder/" * 30  # names that need a header of their own
    members = (m for n in range(6) for m in sample(f"{long if n % 2 else ''}{n}", n))
    sound = write_tar(tmp_path / "sound.tar", *members).read_bytes()
    random, path, kept, named = np.random.default_rng(0), tmp_path / "a.tar", 0, 0
    for _ in range(400):
        content = sound
        for _ in range(random.integers(1, 3)):
            content = mutate(content, random) or sound
        path.write_bytes(content)
        keys, defects = scanned(path)
        assert len(set(keys)) == len(keys)
        kept, named = kept + len(keys), named + len(defects)
    assert kept > 400 and named > 100  # most tars lose little, and that is said


def test_the_samples_that_are_listed_are_the_images_that_were_written(tmp_path):
    path = write_tar(tmp_path / "a.tar", ("x.png", b""), *C, *sample("d", 3))
    damage_header(path, 0)
    index = scan.Index("", ["0"], [scan.scan(path)])
    assert [(key, label) for key, label, _ in contents(index)] == [("c", 7), ("d", 3)]
    expected = scan.Index("", ["0"], [scan.scan(write_tar(tmp_path / "b.tar", *C, *sample("d", 3)))])
    assert contents(index) == contents(expected)


@pytest.mark.long
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
def test_samples_behind_a_member_of_more_than_8_gigabytes_are_found(tmp_path, form):
    """Sizes from 8 GiB on are written in a different way; the member is a hole that takes no room on disk."""
    path, large = tmp_path / "a.tar", tarfile.TarInfo("large.bin")
    large.size = 9 << 30
    small = write_tar(tmp_path / "small.tar", IMAGE, LABEL, B_IMAGE, B_LABEL).read_bytes()
    with path.open("wb") as file:
        file.write(large.tobuf(form))
        file.seek(large.size, 1)
        file.write(small)
    shard = scan.scan(path)
    assert shard.labels.tolist() == [1, 0] and (shard.offsets > large.size).all()
    assert [(entry.key, entry.offset) for entry in shard.bad_entries] == [("large", 0)]
    with path.open("rb") as file:
        for position, label in enumerate((1, 0)):
            file.seek(shard.offsets[position])
            assert colour(file.read(shard.sizes[position]))[0] == label
