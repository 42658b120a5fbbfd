"""One rank of `benchmarks.scaling`: reads commands from standard input, one line of JSON each, until it is closed.

Rank 0 answers each command with a line of JSON. Ranks without a command sleep, so that they do not disturb others.
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
from sparse_mlp_ds import rng
from sparse_mlp_ds.config import deepspeed_json
from sparse_mlp_ds.config.batch import BatchPlan
from sparse_mlp_ds.config.deepspeed_json import DeepSpeedJson
from sparse_mlp_ds.config.recipe import MoE
from sparse_mlp_ds.config.stages import Optimizer
from sparse_mlp_ds.distributed import comm, process_group
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.moe.expert_parallel import ExpertParallelMoE
from sparse_mlp_ds.train import engine

CLASSES = 10
SIZES = (8, 64 << 10, 256 << 10, 1 << 20, 2 << 20)
"""Bytes of the collectives that are timed alone."""
REPEATS = 4


def main() -> None:
    """Join the group and execute commands. Arguments of the process: name of the model, path of the DeepSpeed JSON."""
    model, config = sys.argv[1:]
    with process_group.join():
        torch.set_num_threads(1)
        engine.init_deepspeed()
        rank = _Rank(model, deepspeed_json.load(config))
        actions = {"steps": rank.steps, "count": rank.count, "collectives": _collectives}
        answer: Any = "ready"
        while True:
            if process_group.rank() == 0:
                print(json.dumps({"answer": answer}), flush=True)
            if not (line := sys.stdin.readline()):
                break
            command = json.loads(line)
            answer = actions[command.pop("do")](**command)


class _Rank:
    def __init__(self, model: str, config: DeepSpeedJson):
        world = process_group.world_size()
        self.spec = registry.preset(model)
        module = registry.build(
            self.spec, CLASSES, engine.expert_parallel(MoE(), dict.fromkeys(self.spec.experts, world))
        )
        init_weights(module, 0)
        self.engine = engine.build(module, Optimizer(base_lr=1e-3), BatchPlan(world, 1, 1), config)
        engine.set_learning_rate(self.engine, 1e-4)

    def steps(self, images: int, count: int) -> dict[str, Any]:
        """Return the seconds of `count` steps of `images` per rank, and the CPU seconds of one step over all ranks."""
        data = self._data(images)
        self._step(*data)
        comm.barrier()
        times, cpu = [], time.process_time()
        for _ in range(count):
            started = time.perf_counter()
            self._step(*data)
            times.append(time.perf_counter() - started)
        cpu = comm.all_reduce(torch.tensor(time.process_time() - cpu, dtype=torch.float64))
        return {"seconds": times, "cpu": float(cpu) / count}

    def count(self, images: int) -> list[dict[str, Any]]:
        """Return the collectives of a step by rank, and the rows per expert of each layer where nothing is dropped."""
        data = self._data(images)
        with Counted() as step:
            self._step(*data)
        with torch.no_grad(), _noted(self.engine.module) as rows, Counted() as forward:
            self.engine.module(data[0])
        own = {"step": [vars(c) for c in step.calls], "forward": [vars(c) for c in forward.calls], "rows": rows}
        return comm.gather_objects(own)

    def _data(self, images: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        side, numbers = self.spec.image_size, torch.arange(images) + process_group.rank() * images
        generator = torch.Generator().manual_seed(process_group.rank())
        pixels = torch.randn(images, 3, side, side, generator=generator)
        return pixels, numbers % CLASSES, rng.sample_keys(0, numbers, "benchmark")

    def _step(self, pixels: torch.Tensor, labels: torch.Tensor, keys: torch.Tensor) -> None:
        logits, reports = self.engine(pixels, keys)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        self.engine.backward(loss + sum(report.balance for report in reports.values()))
        self.engine.step()


@contextmanager
def _noted(module: torch.nn.Module) -> Iterator[list[list[int]]]:
    """Yield a list that gets, for each MoE layer, the number of rows that it sends to each expert."""
    layers = [layer for layer in module.modules() if isinstance(layer, ExpertParallelMoE)]
    noted: list[list[int]] = []
    for layer in layers:

        def run(items, routes, keys, inner=layer.run_experts):
            noted.append(routes.counts.tolist())
            return inner(items, routes, keys)

        layer.run_experts = run
    yield noted
    for layer in layers:
        del layer.run_experts


def _collectives() -> list[dict[str, Any]]:
    """Return the mean seconds of a collective that is called several times in a row, by kind and bytes per rank."""
    world, timings = process_group.world_size(), []
    for size in SIZES:
        data = torch.zeros(-(-size // (4 * world)) * world)
        gathered = torch.zeros(world * len(data))
        kinds = {
            "all_to_all": lambda data=data: torch_dist.all_to_all_single(torch.empty_like(data), data),
            "all_reduce": lambda data=data: torch_dist.all_reduce(data),
            "all_gather": lambda data=data, out=gathered: torch_dist.all_gather_into_tensor(out, data),
        }
        for kind, action in kinds.items():
            action()
            comm.barrier()
            started = time.perf_counter()
            for _ in range(REPEATS):
                action()
            seconds = (time.perf_counter() - started) / REPEATS
            timings.append({"kind": kind, "bytes": data.nbytes, "seconds": seconds})
    return timings


if __name__ == "__main__":
    main()
