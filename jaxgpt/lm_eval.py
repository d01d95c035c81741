"""Score a run on the tasks of lm-evaluation-harness, or on tasks of your own.

    python -m jaxgpt.lm_eval --workdir runs/char --tasks my_task --include_path tasks

Needs `pip install "jaxgpt[lm_eval]"`. The flags are those of the harness's own command. A task of your own is a YAML file in
the folder --include_path that names a file of JSON lines; it needs no network: see docs/lm_eval.md.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from jaxgpt.common import cli
from jaxgpt.common.say import say
from jaxgpt.config import UserError, first_line
from jaxgpt.config.errors import nearest


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser("lm_eval", description="Scores of lm-evaluation-harness.")
    cli.add_run_flags(parser)
    parser.add_argument(
        "--tasks", "-t", nargs="+", required=True, help="names of tasks or groups, between spaces or commas"
    )
    parser.add_argument("--include_path", type=cli.path, help="a folder with tasks of your own (YAML files)")
    parser.add_argument(
        "--num_fewshot", "-f", type=int, help="examples before each question; default: the task's own"
    )
    parser.add_argument("--limit", "-L", type=float, help="documents of a task, or below 1 their share")
    parser.add_argument("--batch_size", "-b", default="16", help="texts of a batch, or auto")
    parser.add_argument(
        "--output_path", "-o", type=cli.path, help="the folder, or .json file, of the results"
    )
    parser.add_argument(
        "--log_samples", "-s", action="store_true", help="write every document and answer too"
    )
    parser.add_argument("--predict_only", "-x", action="store_true", help="write the answers without metrics")
    parser.add_argument(
        "--gen_kwargs", default="", help="settings of generation: max_gen_toks=40,temperature=0.8"
    )
    parser.add_argument("--apply_chat_template", nargs="?", const=True, default=False, help="ask in turns of a "
                        "conversation, by the run's template")  # fmt: skip
    parser.add_argument("--system_instruction", help="the text of the system's turn, or before each prompt")
    parser.add_argument("--fewshot_as_multiturn", action=argparse.BooleanOptionalAction, help="examples as turns; default: "
                        "with a chat template")  # fmt: skip
    parser.add_argument("--prefix_token_id", type=int, help="the token before a text without context; default: the end of "
                        "text")  # fmt: skip
    parser.add_argument(
        "--use_cache", type=cli.path, help="a file that keeps answers, so that they are not computed again"
    )
    parser.add_argument("--write_out", "-w", action="store_true", help="print the first prompts")
    parser.add_argument("--seed", type=int, default=1234, help="the seed that draws the examples")
    return parser  # fmt: skip


def main(argv: list[str]) -> None:
    """The command line: see --help."""
    args = _parser().parse_args(argv)
    cli.check_at_least(0, args, "num_fewshot", "seed")
    if args.limit is not None and not (args.limit >= 1 and args.limit % 1 == 0) and not 0 < args.limit < 1:
        raise UserError(
            f"--limit={args.limit:g}: give a number of documents, 1 or more, or a share between 0 and 1"
        )
    if (args.log_samples or args.predict_only) and args.output_path is None:
        raise UserError("--log_samples and --predict_only write files: give --output_path")
    if args.fewshot_as_multiturn and not args.apply_chat_template:
        raise UserError("--fewshot_as_multiturn needs --apply_chat_template")
    if args.output_path is not None:
        results_folder(args.output_path).mkdir(parents=True, exist_ok=True)  # before the work, not after it
    cli.set_up_process()
    os.environ.setdefault("LMEVAL_LOG_LEVEL", "WARNING")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import lm_eval
    except ImportError as error:
        raise UserError(
            f'this command needs lm-evaluation-harness ({error}): pip install "jaxgpt[lm_eval]"'
        ) from error
    from jinja2 import TemplateError
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.utils import make_table, setup_logging

    from jaxgpt.training.harness import JaxGPT

    setup_logging()
    model = JaxGPT(args.workdir, args.step, args.batch_size, args.prefix_token_id)
    if args.apply_chat_template:
        model.chat_template(args.apply_chat_template)
    manager, tasks = _tasks(args)
    tracker = EvaluationTracker(output_path=None if args.output_path is None else str(args.output_path))
    try:
        results = lm_eval.simple_evaluate(
            model=model,
            model_args={
                "path": str(args.workdir),
                "step": model.run.step,
            },  # the harness takes the name from "path"
            tasks=tasks,
            num_fewshot=args.num_fewshot,
            batch_size=model.batch_size,
            limit=args.limit,
            use_cache=None if args.use_cache is None else str(args.use_cache),
            log_samples=args.log_samples,
            evaluation_tracker=tracker,
            system_instruction=args.system_instruction,
            apply_chat_template=args.apply_chat_template,
            fewshot_as_multiturn=bool(args.apply_chat_template)
            if args.fewshot_as_multiturn is None
            else args.fewshot_as_multiturn,
            gen_kwargs=args.gen_kwargs or None,
            task_manager=manager,
            predict_only=args.predict_only,
            write_out=args.write_out,
            torch_random_seed=None,  # not used here
            fewshot_random_seed=args.seed,
        )
    except TemplateError as error:
        raise UserError(
            f"a template of these tasks can't be filled in ({first_line(error)}): fix doc_to_text, doc_to_choice or doc_to_target in "
            "the task's YAML file"
        ) from error
    _save(tracker, results, args.log_samples or args.predict_only)
    print(make_table(results))
    if results.get("groups"):
        print(make_table(results, "groups"))
    say(
        f"step {model.run.step} of {args.workdir}; batches of {model.batch_size}; {model.programs} programs compiled"
    )


def _tasks(args: argparse.Namespace) -> tuple[Any, list[Any]]:
    """The harness's task manager, and the tasks that are asked for. Raises UserError for unknown ones."""
    from lm_eval.tasks import TaskManager

    names = [name for part in args.tasks for name in part.split(",") if name]
    if not names:
        raise UserError("--tasks is empty: give the name of a task")
    if args.include_path is not None and not args.include_path.is_dir():
        raise UserError(
            f"--include_path={args.include_path} is not a folder: give the one with your tasks' YAML files"
        )
    own = None if args.include_path is None else str(args.include_path)
    manager, missing = None, names
    try:
        if own is not None:  # without the thousands of published ones it takes a moment
            manager = TaskManager(include_path=own, include_defaults=False)
            missing = [name for name in names if not manager.match_tasks([name])]
        own_names = [] if manager is None else list(manager.all_tasks)
        if missing:
            manager = TaskManager(include_path=own)
            missing = [name for name in names if not manager.match_tasks([name])]
        if missing:
            near = nearest(missing[0], manager.all_tasks)
            raise UserError(
                f"--tasks: there is no task {missing[0]!r}: "
                + (f"did you mean {near}? " if near else "")
                + (f"Those of {own} are {', '.join(sorted(own_names)[:20]) or 'none'}; " if own else "")
                + f"the harness has {len(manager.all_tasks) - len(own_names):,} (lm-eval ls tasks), and --include_path FOLDER adds "
                "your own"
            )
        found: list[Any] = []
        for name in manager.match_tasks(names):
            loaded = manager.load([name])  # reads the documents
            found += [loaded["groups"][name]] if name in loaded["groups"] else loaded["tasks"].values()
    except UserError:
        raise
    except Exception as error:
        # There are many kinds: YAML, files, the network.
        raise UserError(
            f"--tasks={','.join(names)} can't be loaded ({type(error).__name__}: {first_line(error)}): fix the task's YAML file or its "
            "documents, or check the network if they are on the Hugging Face hub"
        ) from error
    return manager, found


def results_folder(path: Path) -> Path:
    """The folder that the harness writes to for an --output_path: itself, or that of a .json file."""
    return path.parent if path.suffix == ".json" else path


def _save(tracker: Any, results: dict[str, Any], with_samples: bool) -> None:
    """The results in the harness's files, if there is an --output_path."""
    samples = results.pop("samples", None)
    tracker.save_results_aggregated(results=results, samples=samples if with_samples else None)
    if with_samples:
        for name in results["configs"]:
            tracker.save_results_samples(task_name=name, samples=samples[name])
    # The harness only logs that it could not write.
    if tracker.output_path and not any(
        results_folder(Path(tracker.output_path)).rglob(f"*{tracker.date_id}*")
    ):
        raise UserError(f"nothing could be written to --output_path={tracker.output_path}: give another")


if __name__ == "__main__":
    cli.run(main)
