"""Folders of images: which of them are splits and which are classes, and what in them is passed over.

Links to files and folders are followed. Whatever cannot be understood is refused rather than guessed.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from sparse_mlp_ds.data.index import FILE_NAME
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.files import real
from sparse_mlp_ds.shards.passed_over import HIDDEN, PassedOver, is_hidden
from sparse_mlp_ds.shards.scan import IMAGE_SUFFIXES

SUFFIXES = (*IMAGE_SUFFIXES, "bmp", "gif", "tif", "tiff")
"""Suffixes of the files that are taken for images."""
TRAINING = ("train", "training")
"""Names of a folder of training images, in small letters."""
VALIDATION = ("val", "valid", "validation", "dev", "eval", "evaluation")
"""Names of a folder of held-out images."""
TEST = ("test", "testing")
"""Names of a folder that counts as held out if none of VALIDATION is there."""
_SYSTEMS = ("__MACOSX", "@eaDir", "lost+found")  # made by macOS's archiver, by Synology's photo index, and by ext4
_ANNOTATIONS = "val_annotations.txt"


def splits(folder: Path, passed_over: PassedOver) -> dict[str, Path]:
    """Return the folders of the splits `train` and `val`, of both or one; {"": folder} if it holds the classes itself.

    A folder named like a split is a class if it lies alone beside other classes and holds images: `train` beside
    `plane`. Raises UserError if it cannot be told which folders are splits.
    """
    beside = PassedOver()
    folders, files = entries(folder, beside)
    named = {path.name: path for path in folders}
    train, val, test = ([name for name in named if name.casefold() in names] for names in (TRAINING, VALIDATION, TEST))
    like_splits = [*train, *val, *test]
    others = [name for name in named if name not in like_splits]
    if not like_splits:
        return {"": folder}
    if others and not (train and (val or test)):
        if all(_holds_images(named[name]) for name in like_splits):
            return {"": folder}
        raise UserError(
            f"{folder}: '{like_splits[0]}' is named like a split, '{others[0]}' beside it is not; give the folder of "
            "the classes, or a folder that holds nothing but train and val"
        )
    held_out = val or test
    for group in (train, held_out):
        if len(group) > 1:
            raise UserError(f"{folder}: '{group[0]}' and '{group[1]}' are names of the same split; keep one of them")
    passed_over.update([beside])
    for path in files:
        passed_over.add("outside the splits' folders", path)
    for name in [*others, *(test if val else [])]:
        passed_over.add("beside the splits that are made; if it is wanted, give it alone", named[name])
    chosen = {"train": train, "val": held_out}
    return {split: named[names[0]] for split, names in chosen.items() if names}


def images(root: Path, passed_over: PassedOver) -> dict[str, list[Path]]:
    """Return the images of each class folder below `root`, at any depth, in the order of their paths.

    Raises UserError if there are none, if a class has none, or if a folder cannot be read.
    """
    if (root / _ANNOTATIONS).is_file():
        return _annotated(root, passed_over)
    folders, files = entries(root, passed_over)
    for path in files:
        passed_over.add("outside the classes' folders", path)
    above = _lineage(root)
    found = {
        folder.name: [path for path in sorted(files_in(folder, passed_over, above)) if _is_image(path, passed_over)]
        for folder in folders
    }
    if not any(found.values()):
        raise UserError(
            f"{root}: no images in folders here; a class is a folder of {', '.join(SUFFIXES)}{passed_over.clause()}"
        )
    if empty := [name for name, paths in found.items() if not paths]:
        raise UserError(
            f"{root}: {_listed(empty)} without images; remove what is no class, or put its images there"
            f"{passed_over.clause()}"
        )
    return found


def every_image(root: Path, passed_over: PassedOver) -> list[Path]:
    """Return all images in a folder and below it, in the order of their paths.

    Raises UserError if there are none, or if a folder cannot be read.
    """
    found = [path for path in sorted(files_in(root, passed_over, ())) if _is_image(path, passed_over)]
    if not found:
        raise UserError(f"{root}: no images here or below; an image is a {', '.join(SUFFIXES)}{passed_over.clause()}")
    return found


def check_equal(folder: Path, roots: dict[str, Path], found: dict[str, dict[str, list[Path]]]) -> None:
    """Raise UserError if a class is in one of several splits alone.

    Args:
        folder: The folder that holds the splits.
        roots: Each split's folder.
        found: Each split's images by class.
    """
    for name, classes in found.items():
        for other in found.keys() - {name}:
            if alone := [class_name for class_name in classes if class_name not in found[other]]:
                raise UserError(
                    f"{folder}: {_listed(alone)} in {roots[name].name} and not in {roots[other].name}; put images of "
                    "every class into both, or give one of them alone"
                )


def _annotated(root: Path, passed_over: PassedOver) -> dict[str, list[Path]]:
    """Return the images of Tiny ImageNet's split val, which lie in one folder; a table names each image's class."""
    table = root / _ANNOTATIONS
    try:
        classes = dict(line.split("\t")[:2] for line in table.read_text(encoding="utf-8-sig").splitlines())
    except (OSError, ValueError) as error:
        raise UserError(f"{table}: cannot be read ({error}); each line is IMAGE, a tab, CLASS") from None
    found: dict[str, list[Path]] = {}
    for path in sorted(files_in(root, passed_over, ())):
        if path == table or not _is_image(path, passed_over):
            continue
        if class_name := classes.pop(path.name, None):
            found.setdefault(class_name, []).append(path)
        else:
            passed_over.add(f"no class in {table.name}", path)
    for name in classes:
        passed_over.add(f"named in {table.name}, but not there", name)
    if not found:
        raise UserError(f"{root}: none of the images of {table.name} is here{passed_over.clause()}")
    return found


def files_in(folder: Path, passed_over: PassedOver, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """Yield the files in a folder and in the folders below it.

    Args:
        folder: The folder.
        passed_over: Counts what is neither a file nor a folder, or hidden.
        above: Device and number of the folders that hold it, by which a link back to one of them is known.
    """
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        passed_over.add("link back to a folder that holds it", folder)
        return
    folders, files = entries(folder, passed_over)
    yield from files
    for path in folders:
        yield from files_in(path, passed_over, (*above, here))


def _lineage(folder: Path) -> tuple[tuple[int, int], ...]:
    """Return device and number of a folder and of the folders that hold it."""
    statuses = [path.stat() for path in (real(folder), *real(folder).parents)]
    return tuple((status.st_dev, status.st_ino) for status in statuses)


def entries(folder: Path, passed_over: PassedOver) -> tuple[list[Path], list[Path]]:
    """Return the folders and the files in a folder, sorted by name; hidden ones and what is neither are passed over.

    Raises UserError if the folder cannot be read: its images would be missing.
    """
    folders, files = list[Path](), list[Path]()
    try:
        with os.scandir(folder) as listed:
            for entry in sorted(listed, key=lambda entry: entry.name):
                if entry.name == FILE_NAME:  # that of the images themselves
                    continue
                if is_hidden(entry.name):
                    passed_over.add(HIDDEN, entry.path)
                elif entry.name in _SYSTEMS:
                    passed_over.add("made by the operating system", entry.path)
                elif entry.is_symlink() and not os.path.exists(entry.path):
                    passed_over.add("link that leads nowhere, or where this user may not look", entry.path)
                elif entry.is_dir():
                    folders.append(Path(entry.path))
                elif entry.is_file():
                    files.append(Path(entry.path))
                else:
                    passed_over.add("neither file nor folder", entry.path)
    except OSError as error:
        where = error.filename or folder
        raise UserError(f"{where}: cannot be read ({error.strerror}); make it readable, or remove it") from None
    return folders, files


def _holds_images(folder: Path) -> bool:
    return any(_is_image(path, PassedOver()) for path in entries(folder, PassedOver())[1])


def _is_image(path: Path, passed_over: PassedOver) -> bool:
    """Return whether a file's suffix is an image's; if not, the file is passed over."""
    if path.suffix.lower().lstrip(".") in SUFFIXES:
        return True
    passed_over.add(
        f"no image by its suffix {path.suffix}" if path.suffix else "no image, by its lack of a suffix", path
    )
    return False


def _listed(classes: list[str]) -> str:
    """Return `class 'a'`, or `class 'a' and 2 more`."""
    return f"class {classes[0]!a}" + (f" and {len(classes) - 1} more are" if len(classes) > 1 else " is")
