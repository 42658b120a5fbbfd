"""What saving a checkpoint costs (time that training waits, bandwidth of the disk, memory), and what resuming costs.

Two ranks hold Sparse-B with AdamW under ZeRO-1. In one run they alternate between saving beside training, `torch.save`
of the same bytes, and writing as many bytes in sequence.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
import torch.multiprocessing as mp
from rich.console import Console
from rich.table import Table
from torch import nn

from sparse_mlp_ds import rng
from sparse_mlp_ds.checkpoints.manifest import open_checkpoint
from sparse_mlp_ds.checkpoints.reader import Reader
from sparse_mlp_ds.checkpoints.saver import Saver
from sparse_mlp_ds.checkpoints.tensor_file import BLOCK
from sparse_mlp_ds.config.batch import BatchPlan
from sparse_mlp_ds.config.deepspeed_json import DeepSpeedJson
from sparse_mlp_ds.config.recipe import MoE
from sparse_mlp_ds.config.stages import Optimizer
from sparse_mlp_ds.distributed import comm, network, process_group
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.models.presets import IMAGE_PRESETS
from sparse_mlp_ds.train import engine, engine_state

ABOUT = {"progress": {"stage_step": 1}, "recipe": {}}


def main() -> None:
    """Print medians, ranges and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=IMAGE_PRESETS, default="sparse_mlp_b16")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="folder on the disk to measure (default: for temporary files)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON in the last line")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        mp.spawn(_rank, (args.ranks, network.free_port(), args.model, args.rounds, folder), nprocs=args.ranks)
        measured = json.loads((Path(folder) / "measured.json").read_text())
    if args.json:
        print(json.dumps(measured))
        return
    size = measured.pop("bytes") / 1e9
    table = Table("what", "median", "range", title=f"{args.model}, {args.ranks} ranks, {size:.2f} GB")
    for what, values in measured.items():
        table.add_row(what, f"{statistics.median(values):.2f}", f"{min(values):.2f} .. {max(values):.2f}")
    Console().print(table)


def _rank(rank: int, world: int, port: int, model: str, rounds: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with process_group.join():
        engine.init_deepspeed()
        built = _engine(model, world)
        saver, folder = Saver(Path(folder) / "checkpoints", keep=1, keep_every=None, warn=print), Path(folder)
        own = {f"{p.name}@{p.start}": p.values for p in engine_state.pieces(built, None)}
        size = sum(values.nbytes for values in own.values())
        measured: dict[str, list[float]] = {}
        for number in range(rounds + 1):
            figures = _round(built, saver, own, size, folder, number + 1)
            first = ("extra memory / share of a rank",)  # later rounds reuse the memory of the first one
            for what, value in figures.items():
                if (what in first) == (number == 0):
                    measured.setdefault(what, []).append(value)
        total = comm.all_reduce(torch.tensor(size, dtype=torch.float64))
        if rank == 0:
            (folder / "measured.json").write_text(json.dumps({"bytes": int(total)} | measured))


def _engine(model: str, world: int):
    spec = registry.preset(model)
    sizes = dict.fromkeys(spec.experts, world)
    module: nn.Module = registry.build(spec, 1000, engine.expert_parallel(MoE(), sizes))
    init_weights(module, 0)
    config = DeepSpeedJson({"zero_optimization": {"stage": 1}, "gradient_clipping": 1.0})
    built = engine.build(module, Optimizer(base_lr=1e-3), BatchPlan(8 * world, 8, 1), config)
    images = torch.randn(8, 3, spec.image_size, spec.image_size)
    logits, reports = built(images, rng.sample_keys(0, torch.arange(8), "benchmark"))
    built.backward(logits.square().mean() + sum(report.balance for report in reports.values()))
    built.step()
    return built


def _round(built, saver: Saver, own: dict[str, torch.Tensor], size: int, folder: Path, step: int) -> dict[str, float]:
    scratch, block = folder / f"rank-{process_group.rank()}", memoryview(random.randbytes(BLOCK))

    def warm() -> None:
        """Give the kernel the same number of free pages before each timing.

        On a virtual machine, pages that were not used for a while first have to be fetched from the host.
        """
        _write(scratch, block, 2 * size)
        scratch.unlink()
        comm.barrier()

    warm()
    with _extra_memory() as extra:
        held = _timed(lambda: saver.start(step, engine_state.pieces(built, None), ABOUT))
        rest = _timed(lambda: _wait_for(saver, step))
    saver.look(wait=True)  # the previous checkpoint is removed
    warm()
    plain = _timed(lambda: torch.save(own, scratch))
    scratch.unlink()
    warm()
    raw = _timed(lambda: _write(scratch, block, size))
    scratch.unlink()
    newest = saver.newest
    checked = _timed(lambda: comm.on_rank_zero(lambda: open_checkpoint(newest.path)))
    restored = _timed(lambda: engine_state.restore(built, None, Reader(newest), 1))
    return {
        "training held, s": held,
        "torch.save, s": plain,
        "held / torch.save": held / plain,
        "until it is on disk, s": held + rest,
        "raw write with fsync, s": raw,
        "bandwidth / raw": raw / (held + rest),
        "resume: hashes, s": checked,
        "resume: reading, s": restored,
        "resume / torch.save": (checked + restored) / plain,
        "extra memory / share of a rank": extra[0] / size,
    }


def _wait_for(saver: Saver, step: int) -> None:
    while saver.newest is None or saver.newest.manifest["step"] != step:
        time.sleep(0.002)


def _timed(action) -> float:
    """Return the seconds until every rank has finished."""
    comm.barrier()
    started = time.perf_counter()
    action()
    comm.barrier()
    return time.perf_counter() - started


def _write(path: Path, block: memoryview, size: int) -> None:
    with path.open("wb", buffering=0) as file:
        for start in range(0, size, BLOCK):
            file.write(block[: size - start])
        os.fsync(file.fileno())


@contextmanager
def _extra_memory():
    """Yield a list whose one item is, afterwards, the most bytes by which this process grew."""
    process, most, done = psutil.Process(), [0], threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.005):
            most[0] = max(most[0], process.memory_info().rss - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield most
    done.set()
    watcher.join()


if __name__ == "__main__":
    main()
