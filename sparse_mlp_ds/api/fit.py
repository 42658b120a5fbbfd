"""Training from Python: `fit` runs a recipe as `train.py` does, and returns what came out of it."""

import importlib
import os
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sparse_mlp_ds.api.fitted_run import FittedRun
from sparse_mlp_ds.config import loading
from sparse_mlp_ds.config.arguments import DEFAULT_RECIPE
from sparse_mlp_ds.data import index
from sparse_mlp_ds.distributed import deepspeed_command, discovery
from sparse_mlp_ds.errors import STOPPED, USAGE, RunError, StoppedError, UserError, explaining


def fit(
    recipe: str | Path | Mapping[str, Any] = DEFAULT_RECIPE,
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    ds_config: str | Path | Mapping[str, Any] = "moe",
    ranks: int = 1,
    ds: Mapping[str, Any] | None = None,
    resume: str | Path = "auto",
    **settings: Any,
) -> FittedRun:
    """Train, fine-tune and evaluate as a recipe says.

    The run is the same as one of `train.py`: it has the same run folder, and called again it goes on from its newest
    checkpoint, or returns at once if it is done.

    Args:
        recipe: Name of a shipped recipe, path of a YAML file, or the recipe itself as a mapping, in which `base` may
            name a recipe that it changes.
        data: Folder that holds the data set `train`, and `val` if there is one, as `sparse-mlp-ds shards make` writes
            it. It replaces the recipe's, and the number of classes with it.
        out: The run folder; None takes the folder in runs/ that is named like the recipe.
        ds_config: Name of a shipped DeepSpeed JSON, a file's path, or its content as a mapping.
        ds: Keys of the DeepSpeed JSON to change, with dots, and their values: `{"zero_optimization.stage": 2}`.
        ranks: Number of processes. One rank trains in this process, which must then be its main thread; more are
            started by the `deepspeed` launcher on this machine.
        resume: `auto` goes on from the newest checkpoint of the run folder, `never` starts over and sets an earlier
            run aside; or the path of a checkpoint.
        settings: Keys of the recipe, with dots, and their values: `**{"train.seed": 1}`.

    Raises:
        UserError: Something that was given is wrong; each line of the message names it and the fix.
        StoppedError: The run was asked to stop (Ctrl-C, SIGTERM) and has saved itself; the same call continues it.
        RunError: Something outside has ended the run, or a rank of several has failed and has printed why.
    """
    with tempfile.TemporaryDirectory() as folder:
        name = _as_file(_from_here(recipe), Path(folder, "recipe.yaml"))
        overrides = [f"{key}={_as_yaml(value)}" for key, value in (_data(data) | settings).items()]
        target = Path(out) if out is not None else Path("runs", loading.load_recipe(name, overrides).name)
        arguments = ["--recipe", name, "--ds_config", _as_file(ds_config, Path(folder, "ds_config.json"))]
        arguments += ["--out", str(target), "--resume", str(resume)]
        arguments += [part for override in overrides for part in ("--set", override)]
        arguments += [part for key, value in (ds or {}).items() for part in ("--ds", f"{key}={_as_yaml(value)}")]
        if ranks == 1:
            _here(arguments)
        else:
            _launched(arguments, ranks)
    return FittedRun(target)


def _from_here(recipe: str | Path | Mapping[str, Any]) -> str | Path | Mapping[str, Any]:
    """Return a recipe whose `base`, if it is a file's path, does not depend on the folder that the recipe lies in."""
    base = recipe.get("base") if isinstance(recipe, Mapping) else None
    if not isinstance(recipe, Mapping) or not isinstance(base, (str, Path)):
        return recipe
    return {**recipe, "base": str(Path(base).absolute() if Path(base).is_file() else base)}


def _as_file(given: str | Path | Mapping[str, Any], path: Path) -> str:
    """Return a name or path as it is; write a mapping into a file, and return that file's path."""
    if not isinstance(given, Mapping):
        return str(given)
    path.write_text(_as_yaml(dict(given)), encoding="utf-8")  # YAML's flow style is JSON for what JSON can hold
    return str(path)


def _as_yaml(value: Any) -> str:
    """Return a value as one line of YAML. Raises UserError if YAML has no such type."""
    try:
        plain = str(value) if isinstance(value, Path) else value
        return yaml.safe_dump(plain, default_flow_style=True, width=float("inf")).removesuffix("...\n").strip()
    except yaml.YAMLError:
        raise UserError(f"{value!r} cannot be written as YAML; give numbers, texts, lists and mappings") from None


def _data(folder: str | Path | None) -> dict[str, Any]:
    """Return the keys of a recipe that make a folder its data set."""
    if folder is None:
        return {}
    train, val = Path(folder, "train"), Path(folder, "val")
    classes = len(index.load_unchecked(train).classes)
    return {
        "data.embedded": None,
        "data.train": str(train),
        "data.val": str(val) if val.is_dir() else None,
        "data.classes": classes or None,
    }


def _here(arguments: list[str]) -> None:
    """Train as one rank in this process, whose environment is left as it was."""
    if discovery.discover(os.environ).world_size > 1:
        raise UserError("fit: this process is one of several ranks of a launcher; give that launcher train.py to start")
    if threading.current_thread() is not threading.main_thread():
        raise UserError("fit: only the main thread can be asked to stop; call it there, or with ranks=2")
    with explaining():
        from sparse_mlp_ds.train import main
    from sparse_mlp_ds.train.flags import parse
    from sparse_mlp_ds.train.run_records import RunRecords
    from sparse_mlp_ds.train.stop_request import own_signals

    before, records = dict(os.environ), RunRecords()
    try:
        with own_signals():
            main.run(parse(arguments, "fit"), records, watched=False)
    except tuple(main.EXIT_CODES) as error:
        records.tell(error)
        raise
    finally:
        records.close()
        os.environ.clear()
        os.environ.update(before)


def _launched(arguments: list[str], ranks: int) -> None:
    """Train with several ranks, which `deepspeed` starts; what they print is printed here."""
    with explaining():
        importlib.import_module("deepspeed.launcher")
    command = [*deepspeed_command.local(ranks), *arguments]
    last = ""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                last = line.removeprefix("error: ").strip() if line.startswith("error: ") else last
        finally:
            if process.poll() is None:
                process.terminate()
    if process.returncode == STOPPED:
        raise StoppedError("the run was asked to stop, and has saved itself; the same call continues it")
    if process.returncode:
        kind = UserError if process.returncode == USAGE else RunError
        raise kind(last or f"the launcher ended with exit code {process.returncode}")
