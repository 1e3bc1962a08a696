"""The explorer as a server of its own: on 127.0.0.1 and nowhere else, because it asks nobody who they are."""

import contextlib
import errno
import socket
from collections.abc import Callable

import uvicorn

from bliss_ops.explorer.app import create_app
from bliss_ops.explorer.guard import LOOPBACK
from bliss_ops.lake import Lake

HOST = "127.0.0.1"


def serve(lake: Lake, port: int, ready: Callable[[str], None]) -> None:
    """Serve until interrupted; `ready` is told the address once connections are taken.

    Raises:
        ValueError: the port is taken.
    """
    with contextlib.closing(socket.socket()) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, port))
        except (OSError, OverflowError) as error:
            if isinstance(error, OSError) and error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            raise ValueError(f"port {port} cannot be used ({error}): choose another with --port, or 0 for any free one") from error
        listening.listen(128)
        ready(f"http://{HOST}:{listening.getsockname()[1]}/")
        config = uvicorn.Config(create_app(lake, hosts=LOOPBACK), log_level="warning", server_header=False, timeout_graceful_shutdown=3)
        uvicorn.Server(config).run(sockets=[listening])
