"""How fast documents become token ids, and how much a batch of 10^9 ids costs.

    python -m experiments.data_speed [--megabytes 1000] [--only tokenize|loader] [--datasets PYTHON] [--json FILE]

`tokenize` writes JSON lines of that size from the texts of installed packages, in paragraphs that are shuffled and joined to
documents, and runs `python -m jaxgpt.tokenize` on them with GPT-2's vocabulary: seconds, MB a second and the peak memory of
all its processes together, for one process and for two workers. With `--datasets`, a Python that has the package datasets,
its `map` does the same with the same tokenizer, in one process and in two. `loader` makes ten shards of 10^8 ids (sparse
files) and takes batches of 12 windows of 1,024 tokens.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments import claim
from jaxgpt.common import cli
from jaxgpt.data import byte_pairs, corpora, shards
from jaxgpt.data.batches import Batches

# Reads {files} and writes ids of {tokenizer} with {workers} processes.
WITH_DATASETS = """
import sys, time
import datasets, tokenizers
data, tokenizer, workers, cache = sys.argv[1:]
built = tokenizers.Tokenizer.from_file(tokenizer)
start = time.perf_counter()
table = datasets.load_dataset("json", data_files=data, split="train", cache_dir=cache)
def encode(batch):
    return {"ids": [found.ids for found in built.encode_batch(batch["text"], add_special_tokens=False)]}
table = table.map(encode, batched=True, remove_columns=["text"], num_proc=int(workers) or None)
print("ids", sum(len(ids) for ids in table["ids"]), "seconds", time.perf_counter() - start)
"""


def write_documents(file: Path, megabytes: float) -> int:
    """JSON lines of about so many megabytes of text. Returns the bytes of text."""
    rng, paragraphs = random.Random(0), []
    for name in ("shakespeare", "kjv", "python_docs"):
        text = "".join(piece for piece in corpora.open_corpus(name).read() if piece)
        paragraphs += [part for part in text.split("\n\n" if name != "kjv" else "\n") if part.strip()]
    total = 0
    with file.open("w") as out:
        while total < megabytes * 1e6:
            rng.shuffle(paragraphs)
            at = 0
            while at < len(paragraphs) and total < megabytes * 1e6:
                count = rng.randint(1, 60)
                text = "\n\n".join(paragraphs[at : at + count])
                out.write(json.dumps({"text": text}) + "\n")
                at, total = at + count, total + len(text.encode())
    return total


def watched(command: list[str], **more: Any) -> tuple[float, float, str]:
    """Seconds, the peak memory of a process and its children together in MB (proportional, every 0.2 s), and the output."""
    start, most = time.perf_counter(), 0.0
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, **more)
        while process.poll() is None:
            most = max(most, memory(process.pid))
            time.sleep(0.2)
        seconds = time.perf_counter() - start
        output.seek(0)
        text = output.read()
    if process.returncode:
        sys.exit(f"{' '.join(command)}: {text[-2000:]}")
    return seconds, most, text


def memory(pid: int) -> float:
    """The proportional set size of a process and all below it, in MB: shared pages are counted once."""
    total = 0.0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss_Anon") or line.startswith(
                "Pss_Shmem"
            ):  # mapped files are the system's to drop
                total += int(line.split()[1]) / 1e3
        for thread in Path(f"/proc/{pid}/task").iterdir():
            total += sum(memory(int(child)) for child in (thread / "children").read_text().split())
    except OSError:  # it has just ended
        pass
    return total


def tokenize(
    folder: Path, megabytes: float, num_workers: list[int], with_datasets: str
) -> list[dict[str, Any]]:
    """The measurements of tokenizing, in turns."""
    size = write_documents(folder / "documents.jsonl", megabytes)
    tokenizer_file = folder / "tokenizer.json"
    if with_datasets:
        write_tokenizer(tokenizer_file)
    found = []
    for workers in num_workers:
        for who in ("jaxgpt", "datasets") if with_datasets else ("jaxgpt",):
            cache, out = folder / "cache", folder / "out"
            for place in (cache, out):
                shutil.rmtree(place, ignore_errors=True)
            env = os.environ | {"JAXGPT_CACHE": str(cache), "TOKENIZERS_PARALLELISM": "false"}
            if who == "jaxgpt":
                command = [
                    sys.executable, "-m", "jaxgpt.tokenize", "--config", "configs/gpt2.py",
                    f"--config.data.path={folder}/documents.jsonl", "--out", str(out), "--num_workers", str(workers),
                ]  # fmt: skip
            else:
                command = [
                    with_datasets, "-c", WITH_DATASETS, str(folder / "documents.jsonl"), str(tokenizer_file), str(workers),
                    str(cache),
                ]  # fmt: skip
            seconds, most, text = watched(command, env=env)
            one = {
                "who": who, "workers": workers, "megabytes": round(size / 1e6, 1), "seconds": round(seconds, 1),
                "megabytes_per_second": round(size / 1e6 / seconds, 2), "peak_megabytes": round(most),
                "ids": sum(len(shards.open_ids([f])) for f in out.glob("*.bin")) if who == "jaxgpt" else int(text.split("ids ")[-1].split()[0]),
            }  # fmt: skip
            print(one, flush=True)
            found.append(one)
    return found


def write_tokenizer(file: Path) -> None:
    """GPT-2's vocabulary as a tokenizer.json, by the package tokenizers itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary, merges = byte_pairs.read_gpt2_files("")
    pairs = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in merges]
    built = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, pairs))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    built.save(str(file))


def loader(folder: Path) -> dict[str, Any]:
    """Microseconds of a batch from 10 shards of 10^8 ids."""
    files = []
    for number in range(10):
        file = folder / f"x_train_{number:06}.bin"
        header = np.zeros(shards.HEADER_INTS, "<i4")
        header[:3] = 20240520, 1, 10**8
        file.write_bytes(header.tobytes())
        os.truncate(file, 4 * shards.HEADER_INTS + 2 * 10**8)
        files.append(file)
    ids = shards.open_ids(files)
    found: dict[str, Any] = {"ids": len(ids), "shards": len(files)}
    for batch_size in (12, 480):
        batches = Batches(ids, 0, batch_size, 1024)
        batches.stack(0, 1)
        times = []
        for step in range(1, 301):
            start = time.perf_counter()
            batches.stack(step, 1)
            times.append(time.perf_counter() - start)
        found[f"microseconds_{batch_size}x1024"] = round(1e6 * float(np.median(times)))
    print(found)
    return found


def main(argv: list[str]) -> None:
    parser = cli.Parser(prog="python -m experiments.data_speed", description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=1000)
    parser.add_argument(
        "--num_workers", type=int, nargs="+", default=[0, 2], help="0: in the command's own process"
    )
    parser.add_argument("--only", choices=["tokenize", "loader"])
    parser.add_argument(
        "--datasets", default="", metavar="PYTHON", help="a Python that has the package datasets"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    record: dict[str, Any] = {"commit": claim.commit(), "machine": claim.machine()}
    with tempfile.TemporaryDirectory() as place:
        if args.only != "tokenize":
            record["loader"] = loader(Path(place))
        if args.only != "loader":
            record["tokenize"] = tokenize(Path(place), args.megabytes, args.num_workers, args.datasets)
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
