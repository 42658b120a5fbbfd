"""One rank of `benchmarks.scaling`: takes commands from standard input, a JSON line each, until that closes.

Rank 0 answers each with a line of JSON. Groups of ranks that are not asked anything sleep, and disturb nobody.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as torch_dist

from benchmarks.collectives import Counted
from sparse_mlp_ds import dist, ds_config, rng
from sparse_mlp_ds.ds_config import Batch
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.moe.expert_parallel import ExpertParallelMoE
from sparse_mlp_ds.recipe import MoE
from sparse_mlp_ds.stages import Optimizer
from sparse_mlp_ds.train import engine

CLASSES = 10
SIZES = (8, 64 << 10, 256 << 10, 1 << 20, 2 << 20)
"""Bytes of the collectives that are timed by themselves."""
REPEATS = 4


def main() -> None:
    """Join the group and serve. Arguments: the model's name, the DeepSpeed JSON."""
    model, config = sys.argv[1:]
    with dist.process_group():
        torch.set_num_threads(1)
        engine.init_deepspeed()
        rank = _Rank(model, ds_config.load(config))
        actions = {"steps": rank.steps, "count": rank.count, "collectives": _collectives}
        answer: Any = "ready"
        while True:
            if dist.rank() == 0:
                print(json.dumps({"answer": answer}), flush=True)
            if not (line := sys.stdin.readline()):
                break
            command = json.loads(line)
            answer = actions[command.pop("do")](**command)


class _Rank:
    def __init__(self, model: str, config: dict[str, Any]):
        world = dist.world_size()
        self.spec = registry.preset(model)
        module = registry.build(
            self.spec, CLASSES, engine.expert_parallel(MoE(), dict.fromkeys(self.spec.experts, world))
        )
        init_weights(module, 0)
        self.engine = engine.build(module, Optimizer(base_lr=1e-3), Batch(world, 1, 1), config)
        engine.set_learning_rate(self.engine, 1e-4)

    def steps(self, images: int, count: int) -> dict[str, Any]:
        """Return the seconds of `count` steps of `images` per rank, and the CPU seconds of one step over all ranks."""
        data = self._data(images)
        self._step(*data)
        dist.barrier()
        times, cpu = [], time.process_time()
        for _ in range(count):
            started = time.perf_counter()
            self._step(*data)
            times.append(time.perf_counter() - started)
        cpu = dist.all_reduce(torch.tensor(time.process_time() - cpu, dtype=torch.float64))
        return {"seconds": times, "cpu": float(cpu) / count}

    def count(self, images: int) -> list[dict[str, Any]]:
        """Return the collectives of a step by rank, and the rows per expert of each layer where nothing is dropped."""
        data = self._data(images)
        with Counted() as step:
            self._step(*data)
        with torch.no_grad(), _noted(self.engine.module) as rows, Counted() as forward:
            self.engine.module(data[0])
        mine = {"step": [vars(c) for c in step.calls], "forward": [vars(c) for c in forward.calls], "rows": rows}
        return dist.gather_objects(mine)

    def _data(self, images: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        side, numbers = self.spec.image_size, torch.arange(images) + dist.rank() * images
        generator = torch.Generator().manual_seed(dist.rank())
        pixels = torch.randn(images, 3, side, side, generator=generator)
        return pixels, numbers % CLASSES, rng.sample_keys(0, numbers, "benchmark")

    def _step(self, pixels: torch.Tensor, labels: torch.Tensor, keys: torch.Tensor) -> None:
        logits, reports = self.engine(pixels, keys)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        self.engine.backward(loss + sum(report.balance for report in reports.values()))
        self.engine.step()


@contextmanager
def _noted(module: torch.nn.Module) -> Iterator[list[list[int]]]:
    """Give a list that takes the rows which each MoE layer sends to each expert, layer by layer."""
    layers = [layer for layer in module.modules() if isinstance(layer, ExpertParallelMoE)]
    noted: list[list[int]] = []
    for layer in layers:

        def run(rows, counts, keys, inner=layer.run_experts):
            noted.append(counts.tolist())
            return inner(rows, counts, keys)

        layer.run_experts = run
    yield noted
    for layer in layers:
        del layer.run_experts


def _collectives() -> list[dict[str, Any]]:
    """Return the seconds of a collective, one right behind the other, by kind and bytes that a rank brings."""
    world, found = dist.world_size(), []
    for size in SIZES:
        brings = torch.zeros(-(-size // (4 * world)) * world)
        gathered = torch.zeros(world * len(brings))
        kinds = {
            "all_to_all": lambda brings=brings: torch_dist.all_to_all_single(torch.empty_like(brings), brings),
            "all_reduce": lambda brings=brings: torch_dist.all_reduce(brings),
            "all_gather": lambda brings=brings, out=gathered: torch_dist.all_gather_into_tensor(out, brings),
        }
        for kind, action in kinds.items():
            action()
            dist.barrier()
            started = time.perf_counter()
            for _ in range(REPEATS):
                action()
            seconds = (time.perf_counter() - started) / REPEATS
            found.append({"kind": kind, "bytes": brings.nbytes, "seconds": seconds})
    return found


if __name__ == "__main__":
    main()
