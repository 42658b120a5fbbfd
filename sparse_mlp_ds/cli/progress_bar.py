"""The progress bar of commands that take minutes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(title: str, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Give a function (done, total) that moves a progress bar with the time left, which only a terminal shows."""
    with steps_bar(quiet) as report:
        yield lambda done, total: report(title, done, total)


@contextmanager
def steps_bar(quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """Give a function (what, done, total) that moves a progress bar, which is named by what is being done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        yield lambda what, done, total: progress.update(task, description=what, completed=done, total=total)
