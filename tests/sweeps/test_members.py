"""A sweep's folder belongs to its members: more may be added, none may change."""

import pytest

from jaxgpt import config
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
    other = small_config(sweep_folder / "text.txt", train__seed=5)
    with pytest.raises(UserError, match=r"train.seed: 0 -> 5"):
        Sweep(other, [{"train.seed": 0}, {"train.seed": 1}], sweep_folder / "found").open()


def unfinished(sweep: Sweep) -> list[str]:
    return [member.name for member in sweep.members if sweep.outcome(member) is None]


def test_with_more_steps_the_members_that_are_done_have_more_to_do(sweep_folder):
    folder, text = sweep_folder / "longer", sweep_folder / "text.txt"
    overrides = [{"train.seed": 0}, {"train.seed": 1}, {"train.seed": 2, "train.num_steps": 24}]
    sweep = Sweep(small_config(text), overrides, folder)
    sweep.open()
    for member, status in zip(sweep.members, ("done", "stopped", "done"), strict=True):
        sweep.end(member, status)
    longer = Sweep(small_config(text, train__num_steps=36), overrides, folder)
    longer.open()
    assert unfinished(longer) == ["000"]
    Sweep(small_config(text, train__num_steps=24, train__log_every=3), overrides, folder).open()
    assert unfinished(longer) == ["000"]


def test_the_final_rate_may_be_given_as_an_absolute_number(sweep_folder):
    text = sweep_folder / "text.txt"
    overrides = [{"optim.final_learning_rate": 3e-4}, {"optim.final_learning_rate_ratio": 0.5}]
    sweep = Sweep(small_config(text), overrides, sweep_folder / "rates")
    assert [member.cfg.optim.final_learning_rate_ratio for member in sweep.members] == pytest.approx(
        [0.1, 0.5]
    )
    base = config.default_config()
    base.optim.final_learning_rate = 1e-4
    members = Sweep(
        base, [{"optim.learning_rate": 2e-3}, {"optim.final_learning_rate_ratio": 0.5}], sweep_folder / "x"
    ).members
    assert [member.cfg.optim.final_learning_rate for member in members] == pytest.approx([1e-4, 5e-4])
