"""Merge the low-rank matrices of a run into its weights.

    python -m jaxgpt.lora --workdir runs/lora --to_workdir runs/merged

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models": y = x W + lora_alpha / lora_rank * x A B. Merged,
W + lora_alpha / lora_rank * A B is one matrix, which costs no more than W. The result is a run folder with one checkpoint, for generate, evaluate, gpt2 export and init_from; training
continues only in the original one.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jaxgpt.common import cli
from jaxgpt.config import UserError


def main(argv: list[str]) -> None:
    """The command line: see --help."""
    parser = cli.Parser("lora", description="Write a run whose low-rank matrices are merged into the others.")
    cli.add_run_flags(parser)
    parser.add_argument("--to_workdir", required=True, type=cli.path, help="the new run's folder")
    args = parser.parse_args(argv)
    cli.set_up_process()
    from jaxgpt.model.lora import merge_lora
    from jaxgpt.runs.load import load, write_run

    run, to = load(args.workdir, step=args.step), Path(args.to_workdir)
    if not run.config.model.lora_rank:
        raise UserError(f"{args.workdir} has no low-rank matrices (model.lora_rank=0): nothing to merge")
    if to.exists():
        raise UserError(f"{to} already exists: give another --to_workdir")
    model_cfg, params = merge_lora(run.config.model, run.params)
    cfg = dataclasses.replace(run.config, model=model_cfg)
    imported = {"name": run.workdir.resolve().name, "format": "merged", "step": run.step}
    write_run(to, cfg, params, run.tokenizer, run.step, {"imported": imported})
    print(f"wrote {to}: step {run.step} of {args.workdir}, merged")


if __name__ == "__main__":
    cli.run(main)
