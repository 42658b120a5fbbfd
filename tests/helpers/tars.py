"""Small tars of small images, for the tests of shards."""

import hashlib
import io
import tarfile

import pytest
from PIL import Image

from sparse_mlp_ds.errors import UserError


def picture(value=100, kind="png", size=(8, 8)):
    """An image file of one colour, which is (value, 0, 255 - value)."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, 0, 255 - value)).save(buffer, kind)
    return buffer.getvalue()


def sample(key, label, suffix="png"):
    """The two members of a sample; its image's colour says its label."""
    return (f"{key}.{suffix}", picture(label % 256)), (f"{key}.cls", str(label).encode())


def write_tar(path, *members, mode="w"):
    """Write a tar of (name, content) or TarInfo members; return its path."""
    path.parent.mkdir(exist_ok=True, parents=True)
    with tarfile.open(path, mode) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return path


def link(name, target, kind=tarfile.SYMTYPE):
    """A member that is no file of its own."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def refusal(function, *arguments, **options):
    """The one line of the UserError that a call raises."""
    with pytest.raises(UserError) as error:
        function(*arguments, **options)
    (line,) = str(error.value).splitlines()
    return line


def colour(content):
    """The upper left pixel of an image file."""
    return Image.open(io.BytesIO(content)).convert("RGB").getpixel((0, 0))


def contents(index):
    """Key, label and sha256 of the image of every sample of an index, in its order, read at the offsets it gives."""
    found = []
    for shard in index.shards:
        with open(shard.path, "rb") as file:
            whole = file.read()
        for place in range(len(shard)):
            image = whole[shard.offsets[place] :][: shard.sizes[place]]
            found.append((shard.key(place), int(shard.labels[place]), hashlib.sha256(image).hexdigest()))
    return found
