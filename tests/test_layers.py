"""The house's walls: a module imports only from strictly lower layers, and is no longer than a sitting."""

import ast
from pathlib import Path

import jaxgpt

PACKAGE = Path(jaxgpt.__file__).parent
LAYERS = {
    "fields": 0,
    "files": 0,
    "liveness": 0,
    "config": 1,
    "presets": 2,
    "baselines": 2,
    "batches": 2,
    "byte_pairs": 2,
    "corpora": 2,
    "layers": 2,
    "muon": 2,
    "profile_steps": 2,
    "processes": 2,
    "progress": 2,
    "sharding": 2,
    "tensor_files": 2,
    "vector_files": 2,
    "nearest": 2,
    "attention": 3,
    "cli": 3,
    "trainable": 3,
    "optim": 4,
    "tokenizers": 3,
    "added_tokens": 4,
    "data": 5,
    "geometry": 3,
    "word_tests": 3,
    "vectors": 4,
    "tables": 7,
    "embeddings": 8,
    "report": 0,  # its __init__ imports nothing
    "report.capture": 7,
    "report.analysis": 8,
    "report.figures": 9,
    "report.methods": 0,
    "report.plain": 4,
    "report.interventions": 6,
    "report.heads": 6,
    "report.subject": 7,
    "report.forward": 9,
    "report.summary": 8,
    "report.attending": 10,
    "report.word_lists": 4,
    "report.learned": 8,
    "report.contexts": 8,
    "report.neurons": 8,
    "report.findings": 5,
    "report.compare": 8,
    "report.static_tables": 4,
    "report.page": 5,
    "report.playground": 6,
    "report.payload": 12,
    "report.write": 13,
    "serve": 14,
    "report.__main__": 14,
    "explain": 10,
    "model": 4,
    "records": 4,
    "tokenizer_files": 4,
    "gpt2_layout": 5,
    "guard": 5,
    "lora": 6,
    "members": 6,
    "steps": 5,
    "checkpoint": 6,
    "costs": 6,
    "evaluate": 6,
    "generate": 6,
    "traffic": 6,
    "gpt2": 7,
    "preflight": 7,
    "starting": 8,
    "programs": 7,
    "run_folder": 9,
    "train": 14,
    "search_space": 0,
    "launchers": 2,
    "sweep_members": 7,
    "sweep_results": 8,
    "sweep": 15,
    "reproduce": 15,
    "bench": 8,
}
# A command line's main() may open a run: imports inside functions are calls upward by name, and are listed.
UPWARD = {("evaluate", "checkpoint"), ("generate", "checkpoint"), ("lora", "checkpoint")}


def imported_modules(path: Path) -> set[str]:
    """The jaxgpt modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jaxgpt":
            found |= {module_of(f"{node.module}.{alias.name}") for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {module_of(a.name) for a in node.names if a.name.startswith("jaxgpt.")}
    return found


def module_of(dotted: str) -> str:
    """The name in LAYERS of a dotted name, which may go on into the module: `jaxgpt.report.capture.Layer`."""
    parts = dotted.split(".")[1:]
    while len(parts) > 1 and not (PACKAGE / "/".join(parts)).with_suffix(".py").is_file():
        parts.pop()
    return ".".join(parts)


def test_modules_import_only_from_lower_layers():
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        if name == "__init__":
            continue
        assert name in LAYERS, f"{name} has no layer: add it to the table"
        for other in imported_modules(path):
            if LAYERS[other] >= LAYERS[name] and (name, other) not in UPWARD:
                wrong.append(f"{name} (layer {LAYERS[name]}) imports {other} (layer {LAYERS[other]})")
    assert not wrong


def test_no_module_is_longer_than_450_lines():
    lengths = {path.name: len(path.read_text("utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {name: n for name, n in lengths.items() if n > 450} == {}
