"""metrics.jsonl: what is no line of a run is left out and kept, whatever it is; nothing is cut without a copy."""

import itertools
import json
import tracemalloc

from jaxgpt.runs import metrics_log


def line(step: int, split: str = "train", **values) -> bytes:
    return json.dumps({"step": step, "split": split, "loss": 2.0, **values}).encode() + b"\n"


FOREIGN = [
    b"hello\n", b"\n", b"[1, 2]\n", b"3\n", b"null\n", b"{}\n", b'{"step": "3", "split": "train"}\n', b"\xff\xfe\x00\n",
    b'{"step": true, "split": "train", "loss": 1}\n', b'{"step": 3, "split": 7, "loss": 1}\n', b'{"step": -3, "split": "train"}\n',
    b'{"step": 3, "split": "valid", "loss": "low"}\n', b'{"step": 3, "split": "valid"}\n', b'{"step": 3, "split": "valid", "loss": NaN}\n', b'{"step": 3, "split": "train", "loss": 1' + b"0" * 400 + b"}\n",
    b'{"step": 3, "split": "valid", "loss": 1.5, "tokens": "abc"}\n',
    b"[" * 100_000 + b"\n", b'{"step": ' + b"9" * 5_000 + b"}\n", b"x" * (metrics_log.LONGEST_LINE + 7) + b"\n",
]  # fmt: skip


def test_foreign_lines_are_left_out_and_named_once(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b"".join(line(i) + odd for i, odd in enumerate(FOREIGN)) + line(99, "valid") + line(100)[:-9]
    )
    found = metrics_log.read(tmp_path, 10**6)
    assert [x["step"] for x in found] == [*range(len(FOREIGN)), 99]
    assert metrics_log.valid_losses(tmp_path, 10**6) == {99: 2.0}
    first, _ = capsys.readouterr().err.splitlines()
    assert first.startswith(f"warning: {path}: line 2 and ") and first.endswith("is left out")


def test_a_resumed_run_keeps_what_it_removes(tmp_path, capsys):
    path, removed = tmp_path / "metrics.jsonl", tmp_path / "metrics.removed.jsonl"
    content = [line(1), b"foreign\n", line(2), line(2, "valid"), line(3), line(4), b'{"step": 5, "sp']
    path.write_bytes(b"".join(content))
    log = metrics_log.MetricsLog(tmp_path, 2)
    assert log.valid_losses() == {2: 2.0}
    log.write(3, "train", loss=1.5)
    assert path.read_bytes() == line(1) + line(2) + line(2, "valid") + line(3, loss=1.5)
    assert removed.read_bytes() == b"".join([b"foreign\n", line(3), line(4), content[-1] + b"\n"])
    before = removed.read_bytes(), path.stat().st_ino
    metrics_log.MetricsLog(tmp_path, 3)  # nothing to remove: the file is not written again
    assert (removed.read_bytes(), path.stat().st_ino) == before


def test_a_long_log_is_read_as_a_stream(tmp_path):
    count = 60_000
    with (tmp_path / "metrics.jsonl").open("wb") as file:
        for i in range(count):
            file.write(line(i, padding="x" * 60))
            if i % 1_000 == 0:
                file.write(line(i, "valid"))
    tracemalloc.start()
    found = metrics_log.read(tmp_path, count, most=1_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4_000_000
    train = [x["step"] for x in found if x["split"] == "train"]
    assert 500 <= len(train) <= 1_000 and len({b - a for a, b in itertools.pairwise(train)}) == 1
    assert sum(x["split"] == "valid" for x in found) == 60
