"""Small archives in the layouts in which ImageNet and CIFAR are given out."""

import io
import pickle
import struct
import tarfile

import numpy as np
from scipy.io import savemat

from tests.helpers.tars import picture, write_tar

SYNSETS = {
    2: ("n03", "tabby, tabby cat", 0),
    1: ("n07", "pickup", 0),
    3: ("n01", "goldfish, Carassius auratus", 0),
    1001: ("n02", "animal", 2),
}
"""ILSVRC number: WNID, words, number of children; numbers do not follow the WNIDs."""
TRUTH = [3, 1, 2, 2, 1]
"""ILSVRC numbers of the validation images."""


def packed(*members, mode="w"):
    """The bytes of a tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def devkit(path, truth=TRUTH, synsets=SYNSETS):
    """Write ILSVRC2012_devkit_t12.tar.gz."""
    kinds = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("num_children", object)]
    rows = np.empty((len(synsets), 1), dtype=kinds)
    for row, (number, (wnid, words, children)) in enumerate(synsets.items()):
        rows[row, 0] = (float(number), wnid, words, float(children))
    meta = io.BytesIO()
    savemat(meta, {"synsets": rows})
    labels = "".join(f"{number}\n" for number in truth).encode()
    inside = "ILSVRC2012_devkit_t12/data"
    files = (f"{inside}/meta.mat", meta.getvalue()), (f"{inside}/ILSVRC2012_validation_ground_truth.txt", labels)
    return write_tar(
        path / "ILSVRC2012_devkit_t12.tar.gz", ("ILSVRC2012_devkit_t12/readme.txt", b"hello"), *files, mode="w:gz"
    )


def imagenet(path, per_class=4):
    """Write the three archives; an image's colour says its class, or which validation image it is, times ten."""
    devkit(path)
    inner = []
    for label, wnid in enumerate(("n01", "n03", "n07")):
        images = [(f"{wnid}_{n}.JPEG", picture(10 * label, "jpeg")) for n in range(per_class)]
        inner.append((f"{wnid}.tar", packed(*images)))
    write_tar(path / "ILSVRC2012_img_train.tar", *reversed(inner))
    val = [(f"ILSVRC2012_val_{n:08d}.JPEG", picture(10 * n, "jpeg")) for n in range(1, len(TRUTH) + 1)]
    write_tar(path / "ILSVRC2012_img_val.tar", *reversed(val))
    return path


def python2(value):
    """What Python 2 made of a value, as the archives hold it: strings are bytes."""
    if isinstance(value, dict):
        return b"}(" + b"".join(python2(k) + python2(v) for k, v in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(python2, value)) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(python2, value)) + b"t"
    if isinstance(value, bytes):
        return b"T" + struct.pack("<i", len(value)) + value
    if isinstance(value, np.ndarray):
        kind = (
            b"cnumpy\ndtype\n" + python2((b"u1", 0, 1)) + b"R" + python2((3, b"|", None, None, None, -1, -1, 0)) + b"b"
        )
        empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + python2((0,)) + python2(b"b") + b"tR"
        return empty + b"(" + python2(1) + python2(value.shape) + kind + b"\x89" + python2(value.tobytes()) + b"tb"
    return b"N" if value is None else b"J" + struct.pack("<i", value)


PICKLERS = {
    "python2": lambda value: b"\x80\x02" + python2(value) + b".",
    "protocol2": lambda value: pickle.dumps(value, protocol=2),
}


def cifar(path, kind=10, dump=PICKLERS["python2"], per_batch=3, change=lambda name, batch: batch):
    """Write the python archive of CIFAR-10 or -100; return its path and, per split, pixels [N, 3, 32, 32] and labels.

    dump: makes bytes of each file's dictionary. change: makes another dictionary of a file's.
    """
    random = np.random.default_rng(kind)
    if kind == 10:
        folder, names, meta, key = (
            "cifar-10-batches-py",
            [f"data_batch_{n}" for n in range(1, 6)],
            "batches.meta",
            b"label",
        )
        test = "test_batch"
    else:
        folder, names, meta, key, test = "cifar-100-python", ["train"], "meta", b"fine_label", "test"
    members, expected = [("readme.html", b"<html>")], {"train": ([], []), "val": ([], [])}
    for name in [*names, test]:
        pixels = random.integers(256, size=(per_batch, 3, 32, 32), dtype=np.uint8)
        labels = random.integers(kind, size=per_batch).tolist()
        batch = {b"batch_label": b"some", key + b"s": labels, b"data": pixels.reshape(per_batch, -1)}
        if kind == 100:
            batch |= {b"coarse_labels": [0] * per_batch, b"filenames": [b"a.png"] * per_batch}
        members.append((name, dump(change(name, batch))))
        expected["val" if name == test else "train"][0].extend(pixels)
        expected["val" if name == test else "train"][1].extend(labels)
    members.append((meta, dump({key + b"_names": [b"class %d" % n for n in range(kind)], b"num_vis": 3072})))
    members = [(f"{folder}/{name}", content) for name, content in reversed(members)]
    return write_tar(path / f"cifar-{kind}-python.tar.gz", *members, mode="w:gz"), expected
