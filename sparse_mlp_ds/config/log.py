"""The recipe's section `log` as typed keys: which records are written, and where they go."""

from typing import Any, Literal

from pydantic import PositiveInt, field_validator

from sparse_mlp_ds.schema import Section


class Wandb(Section):
    """Weights & Biases. A process of its own sends the run's metrics.jsonl and cannot hold up training."""

    mode: Literal["disabled", "offline", "online"] = "disabled"
    """Send no records (`disabled`), keep them on disk to be sent later (`offline`), or send them at once (`online`)."""
    project: str = "sparse_mlp_ds"
    """Name of the project at Weights & Biases."""
    entity: str | None = None
    """User or team that owns the project; null is the user's default."""
    name: str | None = None
    """Name of the run there; null takes the recipe's name. Sweeps name each run after its setting and seed."""
    group: str | None = None
    """Runs of one group are shown together; sweeps put all seeds of a setting into one."""
    tags: tuple[str, ...] = ()
    """Tags of the run; sweeps give their own name."""
    alerts: bool = False
    """Send an alert when the run fails, stalls, stops on request or ends, and at a loss spike."""


class Profile(Section):
    """Which optimizer steps of each training stage are profiled."""

    at: PositiveInt = 50
    """The first step, counted from 1."""
    steps: PositiveInt = 3
    """Number of steps. Each costs some megabytes for every rank."""


class Log(Section):
    """Which records are written, and where they go."""

    every_steps: PositiveInt = 10
    """Optimizer steps from one record to the next."""
    tensorboard: bool = True
    """Write event files for TensorBoard into RUN/tensorboard."""
    routes: bool = False
    """At the end of each training stage, write what the experts do with held-out images into RUN/routes/STAGE, as data
    and as pictures (see routes.md); a model without experts has none."""
    routes_images: PositiveInt = 2000
    """Most held-out images that `routes` looks at; they are taken evenly from all of them."""
    report: bool = True
    """At the end of the run, write RUN/report.html: curves, results, classes, experts, time and provenance as one page
    (see monitoring.md)."""
    wandb: Wandb = Wandb()
    """Send the records to Weights & Biases."""
    profile: Profile | None = None
    """Write torch.profiler's trace of some steps, for every rank, and on GPUs a memory snapshot, into RUN/profile."""
    on_event: tuple[str, ...] = ()
    """A command that is told when the run fails, stalls, stops on request or ends, and at a loss spike: a list of
    program and arguments, run without a shell."""

    @field_validator("on_event", mode="before")
    @classmethod
    def _list_of_arguments(cls, value: Any) -> Any:
        if isinstance(value, str) or value is None:
            raise ValueError(f"expected a list of program and arguments, such as [mail, -s, run, me], not {value!r}")
        return value
