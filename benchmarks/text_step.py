"""Training steps of models of text, interleaved on one process: g-mlp-pytorch beside gMLP, sparse beside dense.

A step is that of masked modelling: forward, the output layer at 15 % of the tokens, backward, AdamW. Needs
`pip install g-mlp-pytorch`, whose matrix of tokens is free, where gMLP's for text is a Toeplitz matrix.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sparse_mlp_ds import rng
from sparse_mlp_ds.config.loading import load_recipe
from sparse_mlp_ds.distributed import host
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.backbone import Backbone
from sparse_mlp_ds.models.base_spec import MoESpec
from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.models.text_spec import GmlpTextSpec
from sparse_mlp_ds.moe.layer import MoELayer

DENSE = "gmlp_text_speeches"
OTHERS = ("amlp_text_speeches", "sparse_gmlp_text_speeches", "bert_speeches", "mixer_text_speeches")
RECIPE = "speeches"
"""Recipe whose sparse model is timed with its own sizes and routing."""
Logits = Callable[[Tensor], tuple[Tensor, Tensor | float]]
"""A function from tokens [B, n] to the logits [M, V] of the places that are predicted, and the balance losses."""


def main() -> None:
    """Time the models, and print rows of text per second and each one's time over that of the dense gMLP."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=32, help="batch size; routing groups have 8 rows (32)")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    host.keep_freed_memory()  # as every rank without a GPU does
    spec = registry.preset(DENSE)
    assert isinstance(spec, GmlpTextSpec)
    tokens = torch.randint(spec.vocabulary, (args.rows, spec.length))
    places = torch.arange(round(0.15 * spec.length))
    keys = rng.sample_keys(0, torch.arange(args.rows), "benchmark")

    models = {name: registry.build(registry.preset(name)) for name in (DENSE, *OTHERS)}
    models[f"recipe {RECIPE}"] = _of_recipe()
    steps = {name: _step(*_ours(model, places, keys), tokens, places) for name, model in models.items()}
    steps["g-mlp-pytorch"] = _step(*_theirs(spec, places), tokens, places)
    for step in steps.values():
        step()  # warm up
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name, step in steps.items():
            times[name].append(_timed(step))
    rows = []
    for name, seconds in times.items():
        ratios = sorted(mine / dense for mine, dense in zip(seconds, times[DENSE], strict=True))
        quartiles = [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]]
        rate = args.rows / statistics.median(seconds)
        rows.append({"model": name, "rows_per_second": rate, "over_dense": statistics.median(ratios)})
        rows[-1]["quartiles"] = quartiles
    if args.json:
        print(json.dumps(rows))
        return
    table = Table("model", "rows/s", "time over dense", "quartiles", title="training steps of masked modelling")
    for row in rows:
        low, high = row["quartiles"]
        rate, ratio = f"{row['rows_per_second']:.1f}", f"{row['over_dense']:.2f}"
        table.add_row(row["model"], rate, ratio, f"{low:.2f} .. {high:.2f}")
    Console().print(table)


def _of_recipe() -> Backbone:
    recipe = load_recipe(RECIPE)

    def make_moe(kind: str, dim: int, spec: MoESpec, dropout: float) -> MoELayer:
        return registry.local_moe(kind, dim, spec, dropout, recipe.moe.routing(kind))

    return registry.build(recipe.spec, make_moe=make_moe)


def _ours(model: Backbone, places: Tensor, keys: Tensor) -> tuple[nn.Module, Logits]:
    init_weights(model, 0)

    def logits(tokens: Tensor) -> tuple[Tensor, Tensor | float]:
        hidden, reports = model.forward_tokens(tokens, keys)
        return model.tied_logits(hidden[:, places].flatten(0, 1)), sum(r.balance for r in reports.values())

    return model, logits


def _theirs(spec: GmlpTextSpec, places: Tensor) -> tuple[nn.Module, Logits]:
    from g_mlp_pytorch import gMLP

    shape = {"dim": spec.width, "depth": spec.depth, "seq_len": spec.length, "ff_mult": spec.hidden // spec.width}
    model = gMLP(num_tokens=spec.vocabulary, **shape)
    model.to_logits[1].weight = model.to_embed.weight

    def logits(tokens: Tensor) -> tuple[Tensor, float]:
        hidden = nn.Sequential(*model.layers)(model.to_embed(tokens))
        return model.to_logits(hidden[:, places].flatten(0, 1)), 0.0

    return model, logits


def _step(model: nn.Module, logits: Logits, tokens: Tensor, places: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    targets = tokens[:, places].flatten()

    def step() -> None:
        found, balance = logits(tokens)
        (cross_entropy(found, targets) + balance).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _timed(step: Callable[[], None]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
