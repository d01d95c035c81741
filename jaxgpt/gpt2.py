"""Import and export GPT-2's weights: jaxgpt.convert for this family alone.

python -m jaxgpt.gpt2 import --from_dir gpt2 --workdir runs/gpt2
python -m jaxgpt.gpt2 export --workdir runs/char --to_dir exported
"""

from __future__ import annotations

from jaxgpt.common import cli


def main(argv: list[str]) -> None:
    """The command line: see --help."""
    from jaxgpt.runs import convert

    convert.command("gpt2", argv, family="gpt2")


if __name__ == "__main__":
    cli.run(main)
