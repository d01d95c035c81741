"""Several processes, on one machine or many, as one run.

Each process runs the same program on its own devices, and JAX's distributed runtime makes one mesh of all devices. Only
the first process writes files and prints, except for checkpoints, which all processes write together (Orbax).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import jax
import numpy as np

from jaxgpt.common import jax_settings
from jaxgpt.config import UserError, first_line

LONGEST_MESSAGE = 4000  # bytes of an error that is broadcast


def join(args: argparse.Namespace) -> None:
    """Join the other processes as the flags of `cli.add_process_flags` say, and start the devices. Raises UserError."""
    _join(args)
    jax_settings.check_platform()


def _join(args: argparse.Namespace) -> None:
    given = [value is not None for value in (args.coordinator, args.num_processes, args.process_id)]
    if not any(given) and not args.distributed:
        return
    if args.distributed == any(given) or any(given) != all(given):
        raise UserError(
            "give --coordinator HOST:PORT, --num_processes and --process_id together, or --distributed alone where SLURM, "
            "Open MPI or Kubernetes started the processes"
        )
    if not args.distributed and not 0 <= args.process_id < args.num_processes:
        raise UserError(
            f"--process_id={args.process_id}: give 0 to {args.num_processes - 1} (--num_processes less 1)"
        )
    try:
        jax.distributed.initialize(args.coordinator, args.num_processes, args.process_id)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"could not join the other processes ({first_line(error)}): check that the coordinator runs and its port is free"
        ) from None


def is_first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def is_alone() -> bool:
    """Whether the run is one process."""
    return jax.process_count() == 1


def on_first(action: Callable[[], None]) -> None:
    """Run an action in the first process while the others wait. All raise its UserError or OSError."""
    if is_alone():
        action()
        return
    from jax.experimental import multihost_utils

    message, own = b"", None
    if is_first():
        try:
            action()
        except (UserError, OSError) as error:
            own, message = error, (str(error) or type(error).__name__).encode()[:LONGEST_MESSAGE]
    padded = np.frombuffer(message.ljust(LONGEST_MESSAGE, b"\0"), np.uint8)
    received = bytes(multihost_utils.broadcast_one_to_all(padded)).rstrip(b"\0").decode(errors="replace")
    if received:
        raise own or UserError(received)


def any_of_them(flag: bool) -> bool:
    """Whether the flag is set in any process. All processes must call this."""
    if is_alone():
        return flag
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))
