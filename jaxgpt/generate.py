"""Generate text with a trained model.

    python -m jaxgpt.generate --workdir runs/char --prompt "ROMEO:" --max_new_tokens 400

A sample is a function of (params, prompt, settings, seed, sample number) only. Batching and caching do not change it.

Past context_length the window moves in jumps: when it is full, the older half is dropped and the rest is read again from
position 0 (`window_start`). So a token sees at least the context_length / 2 tokens before it, if there are that many.
"""

from __future__ import annotations

import sys

from jaxgpt.common import cli


def main(argv: list[str]) -> None:
    """The command line: see --help."""
    parser = cli.Parser("generate", description="Text from a trained model.")
    cli.add_run_flags(parser)
    parser.add_argument("--prompt", help="text to continue; default: the run's "
                        "train.sample_prompt, or a newline if the tokenizer knows it")  # fmt: skip
    parser.add_argument("--max_new_tokens", type=int, default=400, help="tokens per sample")
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="divides the logits; 0: always the most probable token"
    )
    parser.add_argument("--top_k", type=int, help="draw from the k most probable tokens only")
    parser.add_argument("--top_p", type=float, help="draw from the most probable tokens that "
                        "together have this probability")  # fmt: skip
    parser.add_argument(
        "--num_samples", type=int, default=1, help="one is streamed, several are computed together"
    )
    cli.add_stop_flags(parser)
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same text")
    args = parser.parse_args(argv)
    cli.set_up_process()
    from jaxgpt.data import prompts
    from jaxgpt.model.generation import Sampler, sample_groups, stream
    from jaxgpt.model.stopping import Stops
    from jaxgpt.runs.load import load

    sampler = Sampler(args.temperature, args.top_k, args.top_p)
    run = load(args.workdir, step=args.step)
    prompt = args.prompt
    if prompt is None:
        prompt = prompts.default(run.tokenizer, run.config.train.sample_prompt)
    stops = Stops(run.tokenizer.eos_id if args.stop_at_eot else None, tuple(args.stop))
    if args.num_samples == 1:
        texts = stream(
            run.model, run.params, run.tokenizer, prompt, args.max_new_tokens,
            sampler=sampler, seed=args.seed, stops=stops,
        )  # fmt: skip
        first = next(texts, "")  # a prompt that can't be used is not printed
        sys.stdout.write(prompt + first)
        for text in texts:
            sys.stdout.write(text)
            sys.stdout.flush()
        sys.stdout.write("\n")
        return
    groups = sample_groups(
        run.model, run.params, run.tokenizer, [prompt], args.max_new_tokens,
        sampler=sampler, num_samples=args.num_samples, seed=args.seed, stops=stops,
    )  # fmt: skip
    for number, text in enumerate((text for (samples,) in groups for text in samples), start=1):
        print(f"--- sample {number} of {args.num_samples} ---")
        print(prompt + text, flush=True)


if __name__ == "__main__":
    cli.run(main)
