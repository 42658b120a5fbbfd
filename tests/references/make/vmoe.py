"""Records V-MoE's routing, balance losses, capacities and mixup, from its authors' code. Needs jax and flax."""

import itertools
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from tests.references.make import support

GROUPS, ITEMS, DIM = 2, 24, 16
Arrays = dict[str, np.ndarray]


def routing(module) -> Arrays:
    """Route the same items under every option: gates that got a place [G, S, E], and the losses of each group."""
    inputs = np.array(jax.random.normal(jax.random.key(0), (GROUPS, ITEMS, DIM)))
    found: Arrays = {"inputs": inputs}
    for experts in (4, 8):
        kernel = np.array(0.4 * jax.random.normal(jax.random.key(experts), (DIM, experts)))
        draws = np.array(jax.random.normal(jax.random.key(1), (GROUPS, ITEMS, experts)))
        found[f"E{experts}/kernel"], found[f"E{experts}/draws"] = kernel, draws
        variables = {"params": {"dense": {"kernel": kernel}}}
        for top_k, noisy, factor in itertools.product((1, 2), (False, True), (0.5, 1.05)):
            case = f"E{experts} K{top_k} C{factor} {'noisy' if noisy else 'deterministic'}"
            sizes = {"capacity_factor": factor, "capacity_multiple_of": None, "name": "einsum"}
            common = {"num_experts": experts, "deterministic": not noisy}
            for priority in (False, True):
                dispatcher = sizes | {"batch_priority": priority}
                router = module.NoisyTopExpertsPerItemRouter(
                    num_selected_experts=top_k, dispatcher=dispatcher, gshard_loss_weight=1.0, **common
                )
                placed, losses = _route(router, variables, inputs, draws)
                found[f"{case}/{'importance' if priority else 'position'}"] = placed
            found |= {f"{case}/{name}": np.array(value) for name, value in losses.items()}
        for factor, noisy in itertools.product((0.5, 2.0), (False, True)):
            router = module.NoisyTopItemsPerExpertRouter(
                num_experts=experts,
                deterministic=not noisy,
                dispatcher={"capacity_factor": factor, "capacity_multiple_of": None, "name": "einsum"},
            )
            case = f"expert choice E{experts} C{factor} {'noisy' if noisy else 'deterministic'}"
            found[case] = _route(router, variables, inputs, draws)[0]
    return found


def _route(router, variables, inputs, draws) -> tuple[np.ndarray, dict]:
    """Run a router with the given draws of its noise."""
    with mock.patch("jax.random.normal", lambda **_: draws):
        dispatcher, metrics = router.apply(variables, inputs, rngs={"gating": jax.random.key(2)})
    return np.array(dispatcher.combine_weights.sum(axis=-1)), metrics


def capacities(moe) -> Arrays:
    """Slots per expert: (items x choices, experts, factor) -> capacity, as it is and as a multiple of 4."""
    settings = list(itertools.product((49, 196, 392, 400, 784, 1568), (4, 8, 16, 32), (0.5, 1.0, 1.05, 1.1, 1.25, 1.5)))
    multiples = {"capacity": None, "capacity, multiple of 4": 4}
    table = {
        name: [moe.compute_capacity(*s, multiple_of=multiple) for s in settings] for name, multiple in multiples.items()
    }
    return {"capacity of": np.array(settings)} | {name: np.array(values) for name, values in table.items()}


def mixup(trainer) -> Arrays:
    """Mix small images and labels; and the share that each of many images keeps of itself."""
    images = np.array(jax.random.normal(jax.random.key(3), (8, 3, 4, 4)))
    targets = np.eye(8, dtype=np.float32)
    found: Arrays = {"mixup/images": images}
    for alpha in (0.2, 0.5):
        call = {"concentration": alpha, "shape": (8, 2)}
        mixed, labels = trainer.mixup(jax.random.key(4), [images, targets], **call)
        found[f"mixup {alpha}/mixed"], found[f"mixup {alpha}/labels"] = np.array(mixed), np.array(labels)
        many = 4096
        ones = jnp.eye(many, dtype=jnp.float32)
        kept = np.diag(np.array(trainer.mixup(jax.random.key(5), [ones], concentration=alpha, shape=(many, 2))[0]))
        found[f"mixup {alpha}/quantiles of the kept share"] = np.quantile(kept, np.linspace(0, 1, 101))
    return found


def main() -> None:
    """Run the reference on a CPU."""
    path = support.checkout(__doc__)
    import vmoe.moe
    import vmoe.nn.routing

    for unused in ("clu", "tensorflow", "vmoe.initialization", "vmoe.data", "vmoe.evaluate", "vmoe.nn.models"):
        sys.modules[unused] = mock.MagicMock()  # the trainer imports them, and mixup does not need them
    for unused in (
        "projects.adversarial_attacks",
        "train.optimizer",
        "train.periodic_actions",
        "train.tree_summarizer",
    ):
        sys.modules[f"vmoe.{unused}"] = mock.MagicMock()
    import vmoe.train.trainer

    write = {"repository": "https://github.com/google-research/vmoe", "script": "vmoe", "path": path}
    write |= {"packages": ["jax", "flax"]}
    about = "The router with and without noise, capacity and priority; its losses; capacities. G 2 groups of 24 items."
    support.record("vmoe_routing", routing(vmoe.nn.routing) | capacities(vmoe.moe), about, **write)
    about = "Mixup of 8 images with their neighbours, and how much of itself each of many images keeps."
    support.record("vmoe_mixup", mixup(vmoe.train.trainer), about, **write)


if __name__ == "__main__":
    main()
