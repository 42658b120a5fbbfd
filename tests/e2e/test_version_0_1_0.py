"""A run that version 0.1.0 began goes on with the same command, through the deepspeed launcher."""

from pathlib import Path

import pytest
import torch

from sparse_mlp_ds.checkpoints.manifest import open_checkpoint
from sparse_mlp_ds.checkpoints.reader import Reader
from tests.helpers import crops_of_0_1_0
from tests.helpers import version_0_1_0 as old
from tests.helpers.launcher import REPOSITORY, Launch


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_run_of_version_0_1_0_goes_on(tmp_path):
    run = old.run_folder(tmp_path)
    config = str(REPOSITORY / "ds_configs/moe_zero1.json")
    arguments = ("--ds_config", config, "--recipe", str(old.FOLDER / "recipe.yaml"), "--out", str(run))
    # Crops are whole pixels now, which is another picture of images of 8 x 8; everything else has to be as it was.
    with Launch(tmp_path, *arguments, script=Path(crops_of_0_1_0.__file__)) as launch:
        assert launch.wait() == 0, launch.output()
    assert "resuming from" in launch.output() and "step_3" in launch.output()
    before, now = (Reader(open_checkpoint(path)) for path in (old.CONTINUED, run / "checkpoints/step_6"))
    assert before.shapes == now.shapes
    # Bit for bit on the machine that wrote them; other processors round differently, and AdamW's first steps divide by
    # moments that are close to 0.
    for name, shape in before.shapes.items():
        count = torch.Size(shape).numel()
        torch.testing.assert_close(now(name, 0, count), before(name, 0, count), rtol=1e-4, atol=1e-6, msg=name)
