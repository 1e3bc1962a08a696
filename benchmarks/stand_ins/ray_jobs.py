"""Ray's Jobs API without Ray: every submitted job runs for a fixed time, writes one line and succeeds.

What remains of a stage is what orchestration costs. It is a process of its own, like the real one.
"""

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

LINE = "done\n"


class Jobs:
    """The submitted jobs by their ids: what was submitted, and when."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.submitted: dict[str, tuple[dict[str, Any], float]] = {}

    async def submit(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.submitted[body["submission_id"]] = (body, time.monotonic())
        return web.json_response({"job_id": body["submission_id"], "submission_id": body["submission_id"]})

    async def list(self, _: web.Request) -> web.Response:
        return web.json_response([self._details(name) for name in self.submitted])

    async def details(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        return web.json_response(self._details(name)) if name in self.submitted else web.Response(status=404, text="no such job")

    async def logs(self, request: web.Request) -> web.Response:
        return web.json_response({"logs": LINE if self._seconds_left(request.match_info["name"]) <= 0 else ""})

    async def tail(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await asyncio.sleep(max(0.0, self._seconds_left(request.match_info["name"])))
        await socket.send_str(LINE)
        await socket.close()
        return socket

    async def stop(self, _: web.Request) -> web.Response:
        return web.json_response({"stopped": True})

    async def version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": "2.60.0", "ray_commit": ""})

    def _details(self, name: str) -> dict[str, Any]:
        body, _ = self.submitted[name]
        status = "SUCCEEDED" if self._seconds_left(name) <= 0 else "RUNNING"
        about = {key: body.get(key) for key in ("submission_id", "entrypoint", "metadata")}
        return about | {"status": status, "type": "SUBMISSION", "message": "", "job_id": None}

    def _seconds_left(self, name: str) -> float:
        return self.submitted[name][1] + self.seconds - time.monotonic()


@contextmanager
def serve(port: int, seconds: float) -> Iterator[None]:
    """Jobs that take that long, on that port of 127.0.0.1."""
    server = subprocess.Popen([sys.executable, __file__, "--port", str(port), "--seconds", str(seconds)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert server.stdout.readline().strip() == "ready"
    try:
        yield
    finally:
        server.terminate()
        server.wait()


async def _main(port: int, seconds: float) -> None:
    jobs = Jobs(seconds)
    app = web.Application()
    app.add_routes(
        [
            web.get("/api/version", jobs.version),
            web.post("/api/jobs/", jobs.submit),
            web.get("/api/jobs/", jobs.list),
            web.get("/api/jobs/{name}", jobs.details),
            web.get("/api/jobs/{name}/logs", jobs.logs),
            web.get("/api/jobs/{name}/logs/tail", jobs.tail),
            web.post("/api/jobs/{name}/stop", jobs.stop),
        ]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=0.5)
    arguments = parser.parse_args()
    asyncio.run(_main(arguments.port, arguments.seconds))
