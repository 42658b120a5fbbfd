"""The MoE layer on a GPU: its loop over experts against grouped products; and the products along the patch axis."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import moe_layer
from benchmarks.gpu_timing import Settings, device, launches, measured
from sparse_mlp_ds import rng
from sparse_mlp_ds.models.layers import Mlp, init_weights
from sparse_mlp_ds.moe import grouped
from sparse_mlp_ds.moe.layer import MoELayer, Routing

TOY = {"MoE_C, 4 experts, K=2": (32, 48, 64, 4, 2)}
Case = tuple[str, Callable[[], dict]]


@contextmanager
def experts_run(together: bool) -> Iterator[None]:
    """Make layers run their experts in grouped products, or in a loop, whatever they would choose."""
    chosen = grouped.applies
    grouped.applies = lambda rows, experts: together and grouped.able(experts)
    try:
        yield
    finally:
        grouped.applies = chosen


def cases(settings: Settings) -> Iterator[Case]:
    """Each layer forward and backward in bf16: as it is, grouped, a dense MLP of as many MACs, DeepSpeed's own MoE."""
    images = 8 if settings.toy else settings.images
    for name, shape in (TOY if settings.toy else moe_layer.CASES).items():
        for kind in ("loop", "grouped", "dense", "stock"):
            yield f"{name}: {kind}", lambda kind=kind, shape=shape: _layer(kind, shape, images, settings)
        yield f"{name}: grouped = loop", lambda shape=shape: _same(shape, images)


def product_cases(settings: Settings) -> Iterator[Case]:
    """Peak rates of this device, then token mixing of Mixer-B three ways: as it is, by baddbmm, padded to 200."""
    side = 64 if settings.toy else 8192
    for precision, dtype in (("bf16", torch.bfloat16), ("tf32", torch.float32), ("fp32", torch.float32)):
        yield f"{precision} {side}^3", lambda p=precision, d=dtype: _square(side, p, d, settings)
    yield "copy", lambda: _copy(2**16 if settings.toy else 2**30, settings)
    images, tokens, width, hidden = (4, 16, 96, 64) if settings.toy else (settings.images, 196, 768, 384)
    for way in ("transposed", "baddbmm", "padded"):
        yield f"token mixing: {way}", lambda way=way: _token_mixing(way, images, tokens, width, hidden, settings)


def _layer(kind: str, shape: tuple[int, int, int, int, int], images: int, settings: Settings) -> dict:
    x, keys, gradient = _inputs(shape, images)
    layer = _build(kind, shape)

    def step() -> None:
        layer.zero_grad()
        x.grad = None
        out = layer(x, keys) if isinstance(layer, MoELayer) else layer(x)
        y, balance = (out[0], out[1]) if isinstance(out, tuple) else (out, 0.0)
        balance = getattr(balance, "balance", balance)
        torch.autograd.backward([y, balance] if isinstance(balance, Tensor) else [y], _with_one(gradient, balance))

    with experts_run(kind == "grouped"):
        return measured(step, settings) | launches(step, top=12)


def _with_one(gradient: Tensor, balance: object) -> list[Tensor]:
    return [gradient, torch.ones_like(balance)] if isinstance(balance, Tensor) else [gradient]


def _inputs(shape: tuple[int, int, int, int, int], images: int) -> tuple[Tensor, Tensor, Tensor]:
    items, dim, *_ = shape
    generator = torch.Generator(device()).manual_seed(0)
    draw = lambda: torch.randn(images, items, dim, device=device(), generator=generator).bfloat16()  # noqa: E731
    keys = rng.sample_keys(0, torch.arange(images, device=device()), "benchmark")
    return draw().requires_grad_(), keys, draw()


def _build(kind: str, shape: tuple[int, int, int, int, int]) -> nn.Module:
    _, dim, hidden, experts, k = shape
    if kind == "dense":
        layer: nn.Module = Mlp(dim, k * hidden)
    elif kind == "stock":
        from deepspeed.moe.layer import MoE

        layer = MoE(dim, Mlp(dim, hidden), experts, ep_size=1, k=k, capacity_factor=Routing().capacity_factor)
        layer.set_deepspeed_parallelism()
    else:
        layer = MoELayer(dim, experts, k, lambda: Mlp(dim, hidden), Routing())
    init_weights(layer, 0)
    layer.to(device(), torch.bfloat16)
    if isinstance(layer, MoELayer):
        layer.router.float()
    elif kind == "stock":
        layer.deepspeed_moe.gate.wg.float()
    return layer


def _same(shape: tuple[int, int, int, int, int], images: int) -> dict:
    """Compare the grouped layer with the loop: output and gradients, relative to the loop's norms."""
    results = []
    for kind in ("loop", "grouped"):
        x, keys, gradient = _inputs(shape, images)
        layer = _build(kind, shape)
        with experts_run(kind == "grouped"):
            y, _ = layer(x, keys)
            y.backward(gradient)
        gradients = [parameter.grad for parameter in layer.experts.parameters()]
        results.append((y.detach(), x.grad, torch.cat([g.flatten() for g in gradients])))
    off = [float((a.float() - b.float()).norm() / a.float().norm()) for a, b in zip(*results, strict=True)]
    if not max(off) < 0.02:
        raise RuntimeError(f"output, its gradient and the weights' differ by {off}")
    return {"output": off[0], "gradient": off[1], "weights": off[2]}


def _square(side: int, precision: str, dtype: torch.dtype, settings: Settings) -> dict:
    a, b = (torch.randn(side, side, device=device()).to(dtype) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        row = measured(lambda: a @ b, settings)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return row | {"tflops": 2 * side**3 / row["ms"] / 1e9}


def _copy(count: int, settings: Settings) -> dict:
    source = torch.randn(count // 4, device=device())
    target = torch.empty_like(source)
    row = measured(lambda: target.copy_(source), settings)
    return row | {"tb_per_second": 8 * source.numel() / row["ms"] / 1e9}


def _token_mixing(way: str, images: int, tokens: int, width: int, hidden: int, settings: Settings) -> dict:
    """Time W2 gelu(W1 x + b1) + b2 along the patch axis of x [B, S, C], forward and backward, in bf16."""
    make = lambda *shape: (0.02 * torch.randn(*shape, device=device())).bfloat16().requires_grad_()  # noqa: E731
    w1, b1, w2, b2 = make(hidden, tokens), make(hidden), make(tokens, hidden), make(tokens)
    x, gradient = make(images, tokens, width), make(images, tokens, width).detach()
    pad = -tokens % 8

    def forward() -> Tensor:
        if way == "baddbmm":
            h = F.gelu(torch.baddbmm(b1[None, :, None], w1.expand(images, -1, -1), x))
            return torch.baddbmm(b2[None, :, None], w2.expand(images, -1, -1), h)
        if way == "padded":
            rows = F.pad(x.transpose(1, 2), (0, pad))
            return F.linear(F.gelu(F.linear(rows, F.pad(w1, (0, pad)), b1)), w2, b2).transpose(1, 2)
        return F.linear(F.gelu(F.linear(x.transpose(1, 2), w1, b1)), w2, b2).transpose(1, 2)

    def step() -> None:
        forward().backward(gradient)

    row = measured(step, settings)
    return row | {"tflops": 12 * images * width * tokens * hidden / row["ms"] / 1e9}
