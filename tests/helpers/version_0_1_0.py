"""What version 0.1.0 wrote, kept as it was: a checkpoint in mid-stage, where it went on to, and an export.

Two ranks, ep_size 2, ZeRO-1, float32, a tiny Sparse-MLP on the embedded digits, supervised with an EMA, six steps:

    deepspeed --num_gpus 2 train.py --ds_config ds_configs/moe_zero1.json --recipe recipe.yaml

`run/` is the run folder as it was after step 3, `continued/` what the same run wrote at step 6, `export/` the export
of step 6.
"""

import shutil
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "data/version_0_1_0"
CHECKPOINT = FOLDER / "run/checkpoints/step_3"
CONTINUED = FOLDER / "continued/step_6"
EXPORT = FOLDER / "export"


def run_folder(folder: Path) -> Path:
    """Copy the run folder, so that a test may go on with it."""
    return Path(shutil.copytree(FOLDER / "run", folder / "run"))
