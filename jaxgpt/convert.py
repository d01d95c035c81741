"""Import published models as runs, and export runs as Hugging Face folders.

    python -m jaxgpt.convert import --from_dir SmolLM2-135M --workdir runs/smollm2
    python -m jaxgpt.convert export --workdir runs/char --to_dir exported

See jaxgpt.runs.published for the files of a folder, and jaxgpt.runs.families for the architectures.
"""

from __future__ import annotations

from jaxgpt.common import cli


def main(argv: list[str]) -> None:
    """The command line: see --help."""
    from jaxgpt.runs import convert

    convert.command("convert", argv)


if __name__ == "__main__":
    cli.run(main)
