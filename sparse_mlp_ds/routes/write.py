"""Writes a record of routes and its pictures into a folder."""

from pathlib import Path

from sparse_mlp_ds import files
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.routes.record import FILE_NAME, Record


def check_target(folder: Path) -> None:
    """Check that routes can be written into a folder: it does not exist, is empty, or holds earlier ones.

    Raises UserError if it holds something else, among which the pictures would be lost, or cannot be written.
    """
    files.check_writable(folder, "--out")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / FILE_NAME).is_file():
        raise UserError(f"--out {folder}: holds something else than routes; give a new or an empty folder")


def write(folder: Path, record: Record) -> list[str]:
    """Write routes.json, and each picture as SVG, in place of earlier ones; return the pictures' file names.

    Raises OSError.
    """
    from sparse_mlp_ds.routes.figures import draw  # matplotlib takes a second to import

    folder.mkdir(parents=True, exist_ok=True)
    files.replace(folder / FILE_NAME, record.model_dump_json())
    names = []
    for name, drawing in draw(record):
        names.append(f"{name}.svg")
        files.replace(folder / names[-1], drawing.svg())
    for old in folder.glob("*.svg"):
        if old.name not in names:
            old.unlink()
    return names
