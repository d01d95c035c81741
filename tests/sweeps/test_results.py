"""The table of results: members that wait or failed, and means over seeds."""

import pytest

from jaxgpt.common import cli
from jaxgpt.config import Config
from jaxgpt.sweeps import results
from jaxgpt.sweeps.members import Row, Sweep
from tests.small_runs import small_config
from tests.small_sweeps import read


def test_a_table_tells_of_those_that_wait(sweep_folder):
    found = Sweep(
        small_config(sweep_folder / "text.txt"),
        [{"train.seed": 0}, {"optim.b1": 0.5}],
        sweep_folder / "found",
    )
    found.open()
    found.end(found.members[1], "failed", "no room")
    assert [row.status for row in found.rows()] == ["waiting", "failed: no room"]
    results.write(found)
    rows = read(sweep_folder / "found/results.csv")
    assert rows[0]["optim.b1"] == "" and rows[1]["train.seed"] == "" and rows[0]["valid_loss"] == ""
    assert not (sweep_folder / "found/best.py").exists()
    found.forget_failures()
    assert [row.status for row in found.rows()] == ["waiting", "waiting"]


def test_rates_that_agree_to_four_digits_are_two_settings(sweep_folder):
    rates = (1.0001e-3, 1.0002e-3)
    overrides = [{"optim.learning_rate": rate, "train.seed": seed} for rate in rates for seed in range(2)]
    found = Sweep(small_config(sweep_folder / "text.txt"), overrides, sweep_folder / "found")
    rows = [Row(f"{i:03}", sweep_folder, "done", 2.0 + i, 1, given) for i, given in enumerate(overrides)]
    assert [line[:2] for line in results.means_over_seeds(rows, found.fields)[1:]] == [
        ["0.0010001", "2.5000"],
        ["0.0010002", "4.5000"],
    ]
    assert results.best_row(rows) is rows[0]
    assert list(results.labels_of(rows, "optim.learning_rate").values()) == ["0.0010001", "0.0010002"]


@pytest.mark.parametrize("folder", ["a b", 'a"""b', "a\\N{b", "-d"])
def test_the_best_config_is_one_for_any_folder(folder, tmp_path):
    row = Row("0", tmp_path, "done", 1.0, 20, {})
    path = tmp_path / folder / "best.py"
    path.parent.mkdir()
    path.write_text(results.config_file(Config(), row, 2, path), "utf-8")
    assert cli.read_config(str(path), {}) == Config()
