"""Serve a local page in which a run continues your text, with the probability of every token.

    python -m jaxgpt.serve --workdir runs/char [--port 8000] [--step 1000]

Needs `pip install "jaxgpt[serve]"` (starlette and uvicorn). The endpoints are documented in inspect/server.py.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import threading

from jaxgpt.common import cli
from jaxgpt.common.say import say
from jaxgpt.config import UserError


def main(argv: list[str]) -> None:
    """The command line: see --help."""
    parser = cli.Parser("serve", description="Serve a local page in which a run continues your text.")
    cli.add_run_flags(parser)
    parser.add_argument("--port", type=int, default=8000, help="port on 127.0.0.1; 0: any free port")
    args = parser.parse_args(argv)
    if missing := [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]:
        raise UserError(f'the local page needs {" and ".join(missing)}: pip install "jaxgpt[serve]"')
    cli.set_up_process()
    from jaxgpt.inspect.server import HOST, listen, new_token, serve
    from jaxgpt.inspect.service import Service
    from jaxgpt.inspect.subject import open_subject

    listening = listen(args.port)
    service = Service(open_subject(args.workdir, args.step))
    token = new_token()
    try:
        say(
            f"{service.about()['title']}: http://{HOST}:{listening.getsockname()[1]}/{token}/  (Ctrl-C to stop)"
        )
        threading.Thread(target=service.warm_up, daemon=True).start()
        serve(service, listening, token)
    except KeyboardInterrupt:
        # A thread that is in XLA when Python ends aborts the process. Nothing is open that has to be closed.
        os._exit(128 + signal.SIGINT)


if __name__ == "__main__":
    cli.run(main)
