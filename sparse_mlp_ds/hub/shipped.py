"""Models that come with the package, by name."""

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "pretrained"
"""A folder for each model, in the form of an export."""


def names() -> list[str]:
    """Return the names of the models that come with the package."""
    return sorted(path.name for path in FOLDER.iterdir() if (path / "config.json").exists())


def folder(name: str) -> Path | None:
    """Return the folder of the model of that name, None if no such model comes with the package."""
    return FOLDER / name if name in names() else None
