"""LAMB and LARS by hand, on whole tensors and on flat pieces of several."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sparse_mlp_ds.train.lamb_lars import Lamb, Lars, Layout
from sparse_mlp_ds.train.param_groups import layer_decay

LR, DECAY = 0.1, 0.01


def tensors(seed=0):
    """Three tensors and their gradients of two steps; the last tensor is 0, whose ratio is 1."""
    draw = np.random.default_rng(seed)
    weights = [draw.normal(size=(4, 3)), 10 * draw.normal(size=(2, 5)), np.zeros((2, 2))]
    return weights, [[draw.normal(size=w.shape) for w in weights] for _ in range(2)]


def ratio(weight, update, trust=1.0):
    w, u = np.linalg.norm(weight), np.linalg.norm(update)
    return trust * w / u if w > 0 and u > 0 else 1.0


def lamb(weights, gradients, scaled):
    weights, m, v = [w.copy() for w in weights], [0.0] * 3, [0.0] * 3
    for t, step in enumerate(gradients, start=1):
        for n, g in enumerate(step):
            m[n], v[n] = 0.9 * m[n] + 0.1 * g, 0.999 * v[n] + 0.001 * g**2
            u = (m[n] / (1 - 0.9**t)) / (np.sqrt(v[n] / (1 - 0.999**t)) + 1e-6) + DECAY * weights[n]
            weights[n] = weights[n] - LR * (ratio(weights[n], u) if scaled else 1.0) * u
    return weights


def lars(weights, gradients, scaled):
    weights, buffers = [w.copy() for w in weights], [0.0] * 3
    for step in gradients:
        for n, g in enumerate(step):
            u = g + DECAY * weights[n]
            buffers[n] = 0.9 * buffers[n] + (ratio(weights[n], u, 0.001) if scaled else 1.0) * u
            weights[n] = weights[n] - LR * buffers[n]
    return weights


RULES = {"lamb": (Lamb, lamb), "lars": (Lars, lars)}


def run(optimizer, parameters, gradients):
    for group in optimizer.param_groups:
        group["lr"] = LR
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = torch.tensor(gradient)
        optimizer.step()


@pytest.mark.parametrize("vectors", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_two_steps_by_hand(rule, vectors):
    made, by_hand = RULES[rule]
    weights, gradients = tensors()
    parameters = [torch.tensor(w) for w in weights]
    run(made([{"params": parameters, "weight_decay": DECAY, "vectors": vectors}]), parameters, gradients)
    for parameter, expected in zip(parameters, by_hand(weights, gradients, scaled=not vectors), strict=True):
        torch.testing.assert_close(parameter, torch.tensor(expected))


@pytest.mark.parametrize("rule", RULES)
def test_a_flat_piece_of_several_tensors_is_scaled_tensor_by_tensor(rule):
    made, by_hand = RULES[rule]
    weights, gradients = tensors()
    flat = torch.tensor(np.concatenate([w.ravel() for w in weights] + [np.zeros(3)]))  # and padding
    optimizer = made([{"params": [flat], "weight_decay": DECAY, "vectors": False}])
    optimizer.layouts[flat] = Layout(((0, 0, 12), (1, 12, 10), (2, 22, 4)), 3, lambda sums: None)
    run(optimizer, [flat], [[np.concatenate([g.ravel() for g in step] + [np.zeros(3)])] for step in gradients])
    expected = np.concatenate([w.ravel() for w in by_hand(weights, gradients, scaled=True)])
    torch.testing.assert_close(flat[:26], torch.tensor(expected))
    assert not flat[26:].any()


class _Launches(TorchDispatchMode):
    """Counts operations that are not views."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("rule", RULES)
def test_a_step_launches_no_more_for_many_tensors_than_for_few(rule):
    counts = []
    for tensors_ in (2, 50):
        flat = torch.ones(tensors_ * 3 + 1)
        optimizer = RULES[rule][0]([{"params": [flat], "weight_decay": DECAY, "vectors": False}])
        optimizer.layouts[flat] = Layout(tuple((n, 3 * n, 3) for n in range(tensors_)), tensors_, lambda sums: None)
        run(optimizer, [flat], [[np.ones(len(flat), dtype=np.float32)]] * 2)
        flat.grad = torch.ones_like(flat)
        with _Launches() as launches:
            optimizer.step()
        counts.append(launches.count)
    assert 0 < counts[0] == counts[1] < 40


def test_layer_decay_shrinks_towards_the_patches():
    scale = layer_decay(0.5, depth=3)
    names = ["backbone.head.weight", "backbone.norm.bias", "backbone.blocks.2.norm1.weight",
             "backbone.blocks.0.moe_s.experts.1.fc1.weight", "backbone.patch_embed.proj.weight"]  # fmt: skip
    assert [scale(name) for name in names] == [1, 1, 0.5, 0.125, 0.0625]
