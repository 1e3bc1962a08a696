"""An S3 server in memory that answers after a fixed time and counts what it is asked: requests and bytes, by kind.

As much of S3 as the lake asks for: HEAD, GET with a range, PUT, multipart upload, DELETE, listings of at most 1,000 keys. It is a process
of its own, so the processor time of the one that asks is that of its client alone. Nothing is checked: signatures, checksums, buckets.
"""

import argparse
import asyncio
import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.request import Request, urlopen
from xml.sax.saxutils import escape

from aiohttp import web

KEYS_PER_LISTING = 1000
REQUESTS = ("head", "get", "put", "list", "part", "delete")  # their kinds, among the counts
MODIFIED = "2026-01-01T00:00:00.000Z"
MODIFIED_HTTP = "Thu, 01 Jan 2026 00:00:00 GMT"
Counts = dict[str, int]


class Store:
    """The objects, the uploads that are not complete, and the counts."""

    def __init__(self, latency_seconds: float) -> None:
        self.latency_seconds = latency_seconds
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.counts: Counter[str] = Counter()
        self.num_waiting = 0
        self.numbers = itertools.count(1)

    async def answer(self, request: web.Request) -> web.Response:
        """Any request of a client."""
        if request.path == "/-/counts":
            counts = dict(self.counts)
            self.counts.clear()
            return web.json_response(counts)
        body = await request.read()
        self.num_waiting += 1
        self.counts["at_once"] = max(self.counts["at_once"], self.num_waiting)
        await asyncio.sleep(self.latency_seconds)
        self.num_waiting -= 1
        key, query = request.path.strip("/"), request.query
        if "uploadId" in query or "uploads" in query:
            return self._upload(request.method, key, query.get("uploadId", ""), int(query.get("partNumber", 0)), body)
        if request.method == "GET" and "/" not in key:
            return self._list(key, query.get("prefix", ""), query.get("delimiter", ""), query.get("continuation-token", ""))
        if request.method == "POST" and "delete" in query:
            return self._count("delete", web.Response(text="<DeleteResult/>", content_type="application/xml"))
        if request.method == "PUT":
            self.objects[key] = body
            self.counts["bytes_put"] += len(body)
            return self._count("put", web.Response(headers={"ETag": _etag(body)}))
        if request.method == "DELETE":
            self.objects.pop(key, None)
            return self._count("delete", web.Response(status=204))
        return self._get(request, key)

    def _get(self, request: web.Request, key: str) -> web.Response:
        kind = "head" if request.method == "HEAD" else "get"
        if "/" not in key:
            return self._count(kind, web.Response())
        if key not in self.objects:
            error = "<Error><Code>NoSuchKey</Code><Message>none</Message></Error>"
            return self._count(kind, web.Response(status=404, text="" if kind == "head" else error, content_type="application/xml"))
        data = self.objects[key]
        headers = {"ETag": _etag(data), "Last-Modified": MODIFIED_HTTP, "Accept-Ranges": "bytes"}
        if kind == "head":
            return self._count(kind, web.Response(headers=headers | {"Content-Length": str(len(data))}))
        status, part = 200, data
        if wanted := request.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            begin, end = (
                (int(first), min(int(last) if last else len(data) - 1, len(data) - 1)) if first else (len(data) - int(last), len(data) - 1)
            )
            status, part = 206, data[begin : end + 1]
            headers["Content-Range"] = f"bytes {begin}-{end}/{len(data)}"
        self.counts["bytes_got"] += len(part)
        return self._count(kind, web.Response(status=status, body=part, headers=headers))

    def _list(self, bucket: str, prefix: str, delimiter: str, after: str) -> web.Response:
        names = sorted(key[len(bucket) + 1 :] for key in self.objects if key.startswith(f"{bucket}/{prefix}"))
        entries: dict[str, str] = {}
        for name in names:
            folder, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            entry = f"{prefix}{folder}{found}" if found else name
            entries[entry] = "prefix" if found else "key"
        wanted = [name for name in sorted(entries) if name > after]
        page, more = wanted[:KEYS_PER_LISTING], len(wanted) > KEYS_PER_LISTING
        parts = [f"<IsTruncated>{str(more).lower()}</IsTruncated><KeyCount>{len(page)}</KeyCount>"]
        parts += [f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>"] if more else []
        for name in page:
            if entries[name] == "prefix":
                parts.append(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>")
            else:
                data = self.objects[f"{bucket}/{name}"]
                about = f"<LastModified>{MODIFIED}</LastModified><ETag>{_etag(data)}</ETag><Size>{len(data)}</Size>"
                parts.append(f"<Contents><Key>{escape(name)}</Key>{about}</Contents>")
        text = f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{"".join(parts)}</ListBucketResult>'
        return self._count("list", web.Response(text=text, content_type="application/xml"))

    def _upload(self, method: str, key: str, upload: str, part: int, body: bytes) -> web.Response:
        if method == "POST" and not upload:
            upload = f"upload-{next(self.numbers)}"
            self.uploads[upload] = {}
            text = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
        elif method == "PUT":
            self.uploads[upload][part] = body
            self.counts["bytes_put"] += len(body)
            return self._count("part", web.Response(headers={"ETag": _etag(body)}))
        elif method == "POST":
            parts = self.uploads.pop(upload)
            self.objects[key] = b"".join(parts[number] for number in sorted(parts))
            text = f"<CompleteMultipartUploadResult><Key>{escape(key)}</Key></CompleteMultipartUploadResult>"
        elif method == "GET":
            text = "<ListMultipartUploadsResult/>"  # those of the paths that are asked about have all ended
        else:
            self.uploads.pop(upload, None)
            text = ""
        return self._count("part", web.Response(text=text, content_type="application/xml"))

    def _count(self, kind: str, response: web.Response) -> web.Response:
        self.counts[kind] += 1
        self.counts["missing"] += response.status == 404
        return response


class Counted:
    """The server as its asker sees it."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def counts(self) -> Counts:
        """What was asked since the last call; `missing` of them were answered by 404, `at_once` waited at the same time at most."""
        with urlopen(Request(f"{self.endpoint}/-/counts"), timeout=30) as answer:  # noqa: S310 - the server above
            return dict(json.load(answer))


def num_requests(counts: Counts) -> int:
    """Of all kinds."""
    return sum(counts.get(kind, 0) for kind in REQUESTS)


@contextmanager
def serve(latency_seconds: float) -> Iterator[Counted]:
    """A server on a free port of 127.0.0.1; the environment is set so that every `s3://` address of this process is in it."""
    server = subprocess.Popen([sys.executable, __file__, "--latency-seconds", str(latency_seconds)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    endpoint = server.stdout.readline().strip()
    mine = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    before = {name: os.environ.get(name) for name in mine}
    os.environ.update(mine)
    try:
        yield Counted(endpoint)
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        server.terminate()
        server.wait()


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data[:64] + str(len(data)).encode()).hexdigest()}"'  # noqa: S324 - a name, not a seal


async def _main(latency_seconds: float) -> None:
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", Store(latency_seconds).answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    (address,) = runner.addresses
    print(f"http://127.0.0.1:{address[1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency-seconds", type=float, default=0.02)
    asyncio.run(_main(parser.parse_args().latency_seconds))
