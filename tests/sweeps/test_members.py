"""A sweep's folder belongs to its members: more may be added, none may change."""

import pytest

from jaxgpt.config import UserError
from jaxgpt.sweeps.members import Sweep
from tests.small_runs import small_config


def test_a_sweep_may_grow_but_not_change(sweep_folder):
    cfg = small_config(sweep_folder / "text.txt")
    Sweep(cfg, [{"train.seed": 0}], sweep_folder / "found").open()
    Sweep(cfg, [{"train.seed": 0}, {"train.seed": 1}], sweep_folder / "found").open()
    with pytest.raises(UserError, match=r"its member 1 is train.seed=1, here it is not there"):
        Sweep(cfg, [{"train.seed": 0}], sweep_folder / "found").open()
    with pytest.raises(UserError, match=r"its member 0 is train.seed=0, here it is train.seed=3"):
        Sweep(cfg, [{"train.seed": 3}], sweep_folder / "found").open()
    other = small_config(sweep_folder / "text.txt", train__num_steps=5)
    with pytest.raises(UserError, match=r"train.num_steps: 24 -> 5"):
        Sweep(other, [{"train.seed": 0}, {"train.seed": 1}], sweep_folder / "found").open()
