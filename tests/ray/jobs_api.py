"""A Jobs API on 127.0.0.1 that speaks Ray's paths and does what a test tells it: jobs end when told to, answers fail on purpose."""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class FakeJob:
    body: dict[str, Any]
    status: str = "RUNNING"
    message: str = ""
    log: str = ""


@dataclass
class JobsApi:
    """The server as its test sees it; everything may be changed while it runs."""

    address: str = ""
    token: str | None = None
    jobs: dict[str, FakeJob] = field(default_factory=dict)
    answers: list[int] = field(default_factory=list)  # HTTP statuses of the next requests, instead of what they ask for
    refusal: str = ""  # what the job agent says of whatever is submitted
    requests: Counter[str] = field(default_factory=Counter)  # by method and kind
    log_chars_sent: int = 0
    refuses_tail: bool = False
    breaks_log_after: int | None = None  # characters, once

    def end(self, name: str, status: str = "SUCCEEDED", message: str = "") -> None:
        self.jobs[name].message = message
        self.jobs[name].status = status

    @web.middleware
    async def _fail(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.Response(status=401, text="who are you?")
        if self.answers:
            return web.Response(status=self.answers.pop(0), text="Traceback:\n  told to fail\n")
        response: web.StreamResponse = await handler(request)
        return response

    async def _submit(self, request: web.Request) -> web.Response:
        self.requests["submit"] += 1
        body = await request.json()
        if self.refusal:
            return web.Response(status=500, text=self.refusal)
        if body["submission_id"] in self.jobs:
            text = f"RuntimeError: Request failed with status code 400: ValueError: Job {body['submission_id']} already exists.\n."
            return web.Response(status=500, text=text)  # as Ray's head hands on what its job agent has refused
        self.jobs[body["submission_id"]] = FakeJob(body)
        return web.json_response({"job_id": body["submission_id"], "submission_id": body["submission_id"]})

    async def _list(self, _: web.Request) -> web.Response:
        self.requests["list"] += 1
        of_a_driver = {"submission_id": None, "status": "RUNNING", "entrypoint": "", "type": "DRIVER"}
        return web.json_response([*(self._details(name) for name in self.jobs), of_a_driver])

    async def _job(self, request: web.Request) -> web.Response:
        self.requests["details"] += 1
        name = request.match_info["name"]
        return web.json_response(self._details(name)) if name in self.jobs else web.Response(status=404, text=f"{name} does not exist")

    async def _stop(self, request: web.Request) -> web.Response:
        self.requests["stop"] += 1
        name = request.match_info["name"]
        if name not in self.jobs:
            return web.Response(status=404, text=f"{name} does not exist")
        was_active = self.jobs[name].status in ("PENDING", "RUNNING")
        if was_active:
            self.end(name, "STOPPED")
        return web.json_response({"stopped": was_active})

    async def _logs(self, request: web.Request) -> web.Response:
        self.requests["logs"] += 1
        text = self.jobs[request.match_info["name"]].log
        self.log_chars_sent += len(text)
        return web.json_response({"logs": text})

    async def _tail(self, request: web.Request) -> web.WebSocketResponse:
        self.requests["tail"] += 1
        if self.refuses_tail:
            raise web.HTTPServiceUnavailable
        job = self.jobs[request.match_info["name"]]
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        sent = 0
        while True:
            is_active = job.status in ("PENDING", "RUNNING")
            if new := job.log[sent:]:
                limit = self.breaks_log_after
                await socket.send_str(new[:limit])
                if limit is not None:
                    self.breaks_log_after = None
                    assert request.transport is not None
                    request.transport.abort()
                    return socket
                sent += len(new)
                self.log_chars_sent += len(new)
            elif not is_active:
                await socket.close()
                return socket
            await asyncio.sleep(0.05)

    def _details(self, name: str) -> dict[str, Any]:
        job = self.jobs[name]
        about = {"submission_id": name, "entrypoint": job.body.get("entrypoint"), "metadata": job.body.get("metadata")}
        return about | {"status": job.status, "message": job.message, "type": "SUBMISSION"}


@contextmanager
def jobs_api(port: int = 0) -> Iterator[JobsApi]:
    """A server in a thread of its own."""
    api = JobsApi()
    app = web.Application(middlewares=[api._fail])
    job = "/api/jobs/{name}"
    app.add_routes(
        [
            web.post("/api/jobs/", api._submit),
            web.get("/api/jobs/", api._list),
            web.get(job, api._job),
            web.post(f"{job}/stop", api._stop),
            web.get(f"{job}/logs", api._logs),
            web.get(f"{job}/logs/tail", api._tail),
        ]
    )
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)

    async def start() -> int:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        return int(runner.addresses[0][1])

    async def stop() -> None:
        await runner.cleanup()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    api.address = f"http://127.0.0.1:{loop.run_until_complete(start())}"
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield api
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
