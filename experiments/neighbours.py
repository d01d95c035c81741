"""Time and memory to find 10 neighbours in 400,000 x 300, compared with scikit-learn and gensim.

    python -m experiments.neighbours [--rows 400000] [--width 300] [--queries 1000] [--count 10] [--json FILE]

Each method runs in its own process and reads the same random table from a file. The timed search goes from float32 rows in
memory (including what the method first makes of them) to the neighbours of all queries by cosine. Memory is the peak
of the process minus that after reading the table. scikit-learn: NearestNeighbors, brute force; gensim: most_similar, which
takes one query at a time. Methods that are not installed are skipped, by name.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxgpt.common import cli
from jaxgpt.common.machine import peak_memory
from jaxgpt.config import UserError
from jaxgpt.vectors.nearest import nearest


def _ours(table_ND: np.ndarray, Q: int, k: int) -> Callable[[], np.ndarray]:
    return lambda: nearest(table_ND, table_ND[:Q], k, exclude_QE=np.arange(Q)[:, None])[0]


def _scikit_learn(table_ND: np.ndarray, Q: int, k: int) -> Callable[[], np.ndarray]:
    from sklearn.neighbors import NearestNeighbors

    def search() -> np.ndarray:
        index = NearestNeighbors(n_neighbors=k + 1, metric="cosine", algorithm="brute").fit(table_ND)
        found = index.kneighbors(table_ND[:Q], return_distance=False)
        return np.array([row[row != i][:k] for i, row in enumerate(found)])

    return search


def _gensim(table_ND: np.ndarray, Q: int, k: int) -> Callable[[], np.ndarray]:
    from gensim.models import KeyedVectors

    keyed = KeyedVectors(table_ND.shape[1], dtype=np.float32)
    keyed.index_to_key = list(range(len(table_ND)))
    keyed.key_to_index = {i: i for i in keyed.index_to_key}
    keyed.vectors = table_ND

    def search() -> np.ndarray:
        keyed.fill_norms()
        return np.array([[word for word, _ in keyed.most_similar(i, topn=k)] for i in range(Q)])

    return search


METHODS = {"jaxgpt": _ours, "sklearn": _scikit_learn, "gensim": _gensim}


def measure(method: str, file: str, Q: int, k: int) -> None:
    """Search with one method: print seconds and memory, and write the neighbours next to the table."""
    table_ND = np.load(file)
    search = METHODS[method](table_ND, Q, k)
    before = peak_memory()
    cpu_before = time.process_time()
    begin = time.perf_counter()
    rows = search()
    seconds = time.perf_counter() - begin
    cpu, peak = time.process_time() - cpu_before, peak_memory()
    np.save(Path(file).with_name(f"{method}.npy"), rows)
    print(
        json.dumps(
            {
                "seconds": seconds,
                "cpu_seconds": cpu,
                "peak_mib": peak / 2**20,
                "beyond_mib": (peak - before) / 2**20,
            }
        )
    )


def main(argv: list[str]) -> None:
    """Run the command line; see --help."""
    parser = cli.Parser(prog="python -m experiments.neighbours", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--width", type=int, default=300)
    parser.add_argument("--queries", type=int, default=1000, help="number of queries: the first rows")
    parser.add_argument("--count", type=int, default=10, help="neighbours")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each method; the fastest counts")
    parser.add_argument("--json", default=None, type=Path, help="a file for the figures")
    parser.add_argument(
        "--measure", nargs=2, default=None, metavar=("METHOD", "FILE"), help="one method, here"
    )
    args = parser.parse_args(argv)
    if args.measure:
        return measure(*args.measure, args.queries, args.count)
    methods = [name for name in METHODS if name == "jaxgpt" or importlib.util.find_spec(name)]
    for name in METHODS.keys() - methods:
        print(f"{name} is not installed: skipped")
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "table.npy")
        np.save(file, np.random.default_rng(0).standard_normal((args.rows, args.width), np.float32))
        for name in methods * args.repeats:  # in turns, as the load of the machine may change
            command = [sys.executable, "-m", "experiments.neighbours", "--measure", name, str(file)]
            command += ["--queries", str(args.queries), "--count", str(args.count)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise UserError(f"{name} failed: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
            found = json.loads(done.stdout.splitlines()[-1])
            if name not in figures or found["seconds"] < figures[name]["seconds"]:
                figures[name] = found
        own = np.load(Path(folder, "jaxgpt.npy"))
        for name in methods:
            figures[name]["same"] = float((np.load(Path(folder, f"{name}.npy")) == own).mean())
    base = figures["jaxgpt"]
    for name, found in figures.items():
        print(
            f"{name:<8} {found['seconds']:7.2f} s ({found['seconds'] / base['seconds']:5.2f} x)  "
            f"CPU {found['cpu_seconds']:7.2f} s ({found['cpu_seconds'] / base['cpu_seconds']:5.2f} x)  "
            f"peak {found['peak_mib']:6,.0f} MiB, {found['beyond_mib']:6,.0f} besides the table  same neighbours {found['same']:.2%}"
        )
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    cli.run(main)
