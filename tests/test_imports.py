"""A plain training run loads the core and nothing else. Commands that answer --help: see test_main.py."""

import subprocess
import sys

from tests.commands import CONFIG
from tests.small_runs import write_text

# To learn how a GPT works, read these. What a run needs now and then is imported where it is used.
CORE = """
jaxgpt jaxgpt.train
jaxgpt.config .checks .conversion .errors .fields .metadata .model_fields .reference .snapshots .sources
jaxgpt.common .backend .causes .cli .config_files .door .files .jax_settings .machine .processes .progress .say
jaxgpt.model .attention .generation .gpt .initial .layers .linear .parameters .paths .sampling .sharding .stopping
jaxgpt.data .baselines .batches .byte_pairs .corpora .dataset .documents .encoding .encodings .id_files .long_pieces .measures .packages .packing .position .prompts .shards .special_tokens .text_files .text_pieces .tokenizer .tokenizers
jaxgpt.runs .checkpoint .checksums .damage .metrics_log .orbax_log .orbax_paths .records .snapshots .state .stored_steps
jaxgpt.training .actions .evaluation .guard .lanes .loop .losses .muon .optim .profile_steps .programs .run_folder .starting
    .state_memory .step_log .steps .trainable
"""
OTHER_PACKAGES = {
    "matplotlib",
    "mlflow",
    "safetensors",
    "scipy",
    "starlette",
    "tensorboardX",
    "tokenizers",
    "tqdm",
    "trackio",
    "uvicorn",
    "wandb",
}
TRAIN = """
import sys
from jaxgpt import train
assert train.main(sys.argv[1:]) == 0
print("\\n".join(sys.modules), file=sys.stderr)
"""


def core() -> set[str]:
    """The modules of CORE: a name that starts with a dot is in the room before it."""
    names, room = set(), ""
    for name in CORE.split():
        room = room if name.startswith(".") else name
        names.add(room + name if name.startswith(".") else name)
    return names


def test_a_plain_run_loads_the_core_and_nothing_else(tmp_path):
    write_text(tmp_path / "text.txt")
    (tmp_path / "config.py").write_text(CONFIG)
    command = [
        sys.executable,
        "-c",
        TRAIN,
        "--config",
        "config.py",
        "--workdir",
        "run",
        "--config.train.sample_tokens=4",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stderr.split())
    assert {name for name in loaded if name.partition(".")[0] == "jaxgpt"} == core()
    assert not {name.partition(".")[0] for name in loaded} & OTHER_PACKAGES
