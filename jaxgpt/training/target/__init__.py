"""The training step of a config, compiled here for a card that is not here; and what the compiled program says.

    python -m jaxgpt.train --config configs/gpt2.py --dry_run --target h100x8

cards.py has the cards, compile.py the step for a card, hlo.py the program's text, kernels.py what each kernel reads, writes and
computes, collectives.py what devices send, bounds.py times, report.py the lines. A run imports none of it.
"""
