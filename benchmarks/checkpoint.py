"""What saving costs: the time that training is held, the disk's bandwidth, memory; and what resuming costs.

Two ranks hold Sparse-B with AdamW under ZeRO-1 and take turns, in one run, at saving beside training, at `torch.save`
of the same bytes, and at writing as many bytes one after the other.
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

from sparse_mlp_ds import discovery, dist, rng
from sparse_mlp_ds.ds_config import Batch
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.recipe import Checkpoint, MoE
from sparse_mlp_ds.stages import Optimizer
from sparse_mlp_ds.train import checkpoint, engine, state
from sparse_mlp_ds.train.saving import Saver
from sparse_mlp_ds.train.tensor_file import BLOCK

ABOUT = {"progress": {"stage_step": 1}, "recipe": {}}


def main() -> None:
    """Print medians, ranges and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=registry.PRESETS, default="sparse_mlp_b16")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to measure (default: the temporary folder's)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        mp.spawn(_rank, (args.ranks, discovery.free_port(), args.model, args.rounds, folder), nprocs=args.ranks)
        found = json.loads((Path(folder) / "found.json").read_text())
    if args.json:
        print(json.dumps(found))
        return
    size = found.pop("bytes") / 1e9
    table = Table("what", "median", "range", title=f"{args.model}, {args.ranks} ranks, {size:.2f} GB")
    for what, values in found.items():
        table.add_row(what, f"{statistics.median(values):.2f}", f"{min(values):.2f} .. {max(values):.2f}")
    Console().print(table)


def _rank(rank: int, world: int, port: int, model: str, rounds: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with dist.process_group():
        engine.init_deepspeed()
        built = _engine(model, world)
        saver, folder = Saver(Path(folder) / "checkpoints", Checkpoint(keep=1)), Path(folder)
        own = {f"{p.name}@{p.start}": p.values for p in state.pieces(built, None)}
        size = sum(values.nbytes for values in own.values())
        found: dict[str, list[float]] = {}
        for number in range(rounds + 1):
            one = _round(built, saver, own, size, folder, number + 1)
            first = ("extra memory / share of a rank",)  # later ones use what it has left behind
            for what, value in one.items():
                if (what in first) == (number == 0):
                    found.setdefault(what, []).append(value)
        total = dist.all_reduce(torch.tensor(size, dtype=torch.float64))
        if rank == 0:
            (folder / "found.json").write_text(json.dumps({"bytes": int(total)} | found))


def _engine(model: str, world: int):
    spec = registry.preset(model)
    sizes = dict.fromkeys(spec.experts, world)
    module: nn.Module = registry.build(spec, 1000, engine.expert_parallel(MoE(), sizes))
    init_weights(module, 0)
    config = {"zero_optimization": {"stage": 1}, "gradient_clipping": 1.0}
    built = engine.build(module, Optimizer(base_lr=1e-3), Batch(8 * world, 8, 1), config)
    images = torch.randn(8, 3, spec.image_size, spec.image_size)
    logits, reports = built(images, rng.sample_keys(0, torch.arange(8), "benchmark"))
    built.backward(logits.square().mean() + sum(report.balance for report in reports.values()))
    built.step()
    return built


def _round(built, saver: Saver, own: dict[str, torch.Tensor], size: int, folder: Path, step: int) -> dict[str, float]:
    mine, block = folder / f"rank-{dist.rank()}", memoryview(random.randbytes(BLOCK))

    def warm() -> None:
        """Leave the kernel as many free pages that it has at hand, whatever is timed next.

        On a virtual machine those that nobody has used for a while have to come from its host first.
        """
        _write(mine, block, 2 * size)
        mine.unlink()
        dist.barrier()

    warm()
    with _extra_memory() as extra:
        held = _timed(lambda: saver.start(step, state.pieces(built, None), ABOUT))
        rest = _timed(lambda: _wait_for(saver, step))
    saver.look(wait=True)  # the one before is removed
    warm()
    plain = _timed(lambda: torch.save(own, mine))
    mine.unlink()
    warm()
    raw = _timed(lambda: _write(mine, block, size))
    mine.unlink()
    found = saver.newest
    checked = _timed(lambda: dist.on_rank_zero(lambda: checkpoint.open_checkpoint(found.path)))
    restored = _timed(lambda: state.restore(built, None, checkpoint.Reader(found), 1))
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
    """Seconds until every rank is through."""
    dist.barrier()
    started = time.perf_counter()
    action()
    dist.barrier()
    return time.perf_counter() - started


def _write(path: Path, block: memoryview, size: int) -> None:
    with path.open("wb", buffering=0) as file:
        for start in range(0, size, BLOCK):
            file.write(block[: size - start])
        os.fsync(file.fileno())


@contextmanager
def _extra_memory():
    """Give a list that holds, afterwards, the bytes by which this process grew at most."""
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
