"""The index of images that stay files of their own: a run reads them in the same order as from tars, unconverted."""

from pathlib import Path

from sparse_mlp_ds import files
from sparse_mlp_ds.data.index import Index, Shard
from sparse_mlp_ds.shards.raw_datasets import KINDS
from sparse_mlp_ds.shards.split import RawImage, Split


def file_indexes(folder: Path, kind: str) -> list[tuple[Split, Index]]:
    """List the images of a folder, and return each split with its index, whose source is the split's folder.

    Args:
        folder: The folder.
        kind: `images` (all below it, without labels) or `imagefolder` (one folder per class, or splits of such).

    Raises UserError.
    """
    return [(split, _index(folder, split)) for split in KINDS[kind]([folder], folder)]


def _index(folder: Path, split: Split) -> Index:
    root, found, paths = Path(split.origin) if split.origin else folder / split.name, list[RawImage](), list[str]()
    for image in split.images:
        path = str(Path(image.path).relative_to(root))
        if path.isprintable() and "\\" not in path:  # which also tells names that are no text
            found.append(image)
            paths.append(path)
        else:
            split.passed_over.add("name that cannot be printed", image.path)
    lines = [f"{path} {image.size} {image.label}\n" for path, image in zip(paths, found, strict=True)]
    record = {
        "file": "",
        "files": paths,
        "keys": [image.key for image in found],
        "offsets": [0] * len(found),
        "sizes": [image.size for image in found],
        "labels": [image.label for image in found],
        "bytes": sum(image.size for image in found),
        "sha256": files.sha256_of(line.encode() for line in lines),
        "defects": [],
    }
    return Index(str(root), split.classes, [Shard.from_record(str(root), record)])
