"""Successive halving: the better half of the members continues."""

from pathlib import Path

from tests.commands import execute
from tests.small_runs import metrics
from tests.small_sweeps import COMMAND, read


def test_halving_lets_the_better_half_go_on(sweep_folder, monkeypatch, capsys):
    assert execute(monkeypatch, COMMAND + " --halving 10") == 0
    rows = read(sweep_folder / "found/results.csv")
    assert sorted(row["steps"] for row in rows) == ["10", "10", "20", "20"]
    stopped = [row for row in rows if row["status"].startswith("stopped: step 10: validation loss")]
    at_ten = {
        row["member"]: next(
            x["loss"] for x in metrics(Path(row["workdir"])) if (x["step"], x["split"]) == (10, "valid")
        )
        for row in rows
    }
    assert {row["member"] for row in stopped} == set(sorted(at_ten, key=at_ten.get)[2:])
    before = (sweep_folder / "found/results.csv").read_bytes()
    assert execute(monkeypatch, COMMAND + " --halving 10") == 0
    assert (sweep_folder / "found/results.csv").read_bytes() == before
