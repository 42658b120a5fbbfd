"""Files that come with the package under short names: recipes, sweeps, DeepSpeed JSON."""

from dataclasses import dataclass
from pathlib import Path

from sparse_mlp_ds import files
from sparse_mlp_ds.errors import UserError, did_you_mean


@dataclass(frozen=True)
class NamedFiles:
    """Those of one kind. A user gives one of them by its name, or a file of their own by its path."""

    kind: str
    """What one of them is called in messages."""
    folder: Path
    suffix: str
    """With the dot."""
    of_run: str | None = None
    """Name of the one that a run keeps in its folder."""

    def names(self) -> list[str]:
        """Return their names, in order."""
        return sorted(path.stem for path in self.folder.glob(f"*{self.suffix}"))

    def path(self, name_or_path: str, given: str, start: Path = Path()) -> Path:
        """Return the file of a shipped name, or of a path, whether or not it is there.

        A file of that very name in the folder `start` comes before a shipped one.

        Args:
            name_or_path: As the user gave it.
            given: Where, for the error message.
            start: Folder from which relative paths start.

        Raises UserError with the nearest name; for a run folder with the file that is in it.
        """
        path = start / files.expand(name_or_path)
        if path.is_dir() and name_or_path not in self.names():
            raise UserError(f"{given} {name_or_path}: is a folder, not a {self.kind}; give {self._instead_of(path)}")
        if path.suffix or Path(name_or_path).name != name_or_path or path.is_file():
            return path
        if name_or_path not in self.names():
            raise UserError(f"{given} {name_or_path}: no such {self.kind}; {did_you_mean(name_or_path, self.names())}")
        return self.folder / f"{name_or_path}{self.suffix}"

    def _instead_of(self, folder: Path) -> str:
        if self.of_run and (folder / self.of_run).is_file():
            return str(folder / self.of_run)
        return f"the name of a shipped one, or a {self.suffix} file"
