"""Print one forward pass step by step, with shapes and real numbers.

    python -m jaxgpt.explain --config configs/toy.py --text "I love AI"
    python -m jaxgpt.explain --workdir runs/char --text "ROMEO:" --layer 2 --head 1

With --config the model is untrained, and its vocabulary is the words (or characters) of the sentence.
"""

from __future__ import annotations

import json

from jaxgpt.common import cli
from jaxgpt.config import UserError


def main(argv: list[str]) -> None:
    """The command line: see --help."""
    file, overrides, rest = cli.split_config_flags(argv)
    parser = cli.Parser(
        "explain",
        description="Print one forward pass step by step, of a run or (with --config FILE) of an untrained model.",
    )
    cli.add_run_flags(parser, required=False)
    parser.add_argument("--text", help="the sentence; default: \"I love AI\", or the first words "
                        "of the validation text if the run's tokenizer lacks them")  # fmt: skip
    parser.add_argument("--layer", type=int, default=0, help="the layer to show in detail")
    parser.add_argument("--head", type=int, default=0, help="the head to show in detail")
    parser.add_argument("--width", type=int, default=8, help="rows and columns printed of each array")
    parser.add_argument("--json", action="store_true", help="print all numbers as one JSON object")
    args = parser.parse_args(rest)
    if bool(args.workdir) == bool(file):
        raise UserError("give either a run with --workdir RUN or an untrained model with --config FILE")
    if args.workdir and overrides:
        raise UserError(
            f"--config.{next(iter(overrides))} needs --config FILE: a run in --workdir has a fixed config"
        )
    if file and args.step is not None:
        raise UserError("--step needs --workdir: an untrained model has no steps")
    cli.check_at_least(1, args, "width")
    cli.set_up_process()
    from jaxgpt.inspect.capture import capture
    from jaxgpt.inspect.explained import ids_of, open_run, untrained
    from jaxgpt.inspect.explanation import explain
    from jaxgpt.inspect.explanation_json import explanation_json

    if args.workdir:
        subject = open_run(args.workdir, args.step, args.text)
    else:
        subject = untrained(file, overrides, args.text)
    for name, count in (("layer", subject.cfg.num_layers), ("head", subject.cfg.num_heads)):
        if not 0 <= (value := getattr(args, name)) < count:
            raise UserError(f"--{name}={value}: this model has {count}, give 0 to {count - 1}")
    seen = capture(subject.cfg, subject.params, ids_of(subject, subject.text))
    if args.json:
        out = {"title": subject.title, **explanation_json(seen, subject.tokenizer, args.layer, args.head)}
        print(json.dumps(out, ensure_ascii=False))
        return
    for line in explain(subject, seen, args.layer, args.head, args.width):
        print(line)


if __name__ == "__main__":
    cli.run(main)
