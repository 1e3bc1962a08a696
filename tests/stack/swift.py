"""A real S3 server for the slow tests: OpenStack Swift with its s3api, from Debian's packages, one replica on one directory.

Everything is private to the directory it is given: configuration, rings, data, logs, ports of its own on 127.0.0.1. Swift reads its
swift.conf from /etc/swift unless it is told otherwise before anything of it is imported, which is what `LAUNCHER` does.
This release refuses S3's DeleteObjects from newer clients ("Missing required header: Content-MD5"): objects go one by one.
"""

import getpass
import os
import secrets
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bliss_ops.stack import processes
from bliss_ops.stack.services import free_port

PYTHON = "/usr/bin/python3"  # Debian's, which its packages install Swift for
PROGRAMS = {
    "swift-proxy-server",
    "swift-account-server",
    "swift-container-server",
    "swift-object-server",
    "swift-ring-builder",
    "memcached",
}
ACCOUNT, USER = "bliss", "lake"
START_SECONDS = 90.0
RINGS = ("account", "container", "object")

LAUNCHER = """
import runpy, sys
from swift.common.utils import set_swift_dir
set_swift_dir(sys.argv[1])
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

SWIFT_CONF = """
[swift-hash]
swift_hash_path_prefix = {salt}
swift_hash_path_suffix = {salt}

[storage-policy:0]
name = one
default = yes
"""

SERVER_CONF = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {directory}
devices = {directory}/devices
mount_check = false
fallocate_reserve = 0
log_level = WARNING

[pipeline:main]
pipeline = {kind}-server

[app:{kind}-server]
use = egg:swift#{kind}

[object-updater]
interval = 20
"""

PROXY_CONF = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {directory}
log_level = WARNING

[pipeline:main]
pipeline = catch_errors proxy-logging cache listing_formats bulk s3api tempauth slo dlo proxy-server

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true

[filter:catch_errors]
use = egg:swift#catch_errors

[filter:proxy-logging]
use = egg:swift#proxy_logging

[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{memcached_port}

[filter:listing_formats]
use = egg:swift#listing_formats

[filter:bulk]
use = egg:swift#bulk

[filter:s3api]
use = egg:swift#s3api
location = us-east-1

[filter:tempauth]
use = egg:swift#tempauth
user_{account}_{name} = {secret_key} .admin

[filter:slo]
use = egg:swift#slo

[filter:dlo]
use = egg:swift#dlo
"""


@dataclass(frozen=True)
class S3Server:
    """How to reach the server; path-style addresses, region us-east-1."""

    endpoint: str
    access_key: str
    secret_key: str

    @property
    def environment(self) -> dict[str, str]:
        """The usual variables that s3fs and botocore read."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


def missing() -> str:
    """What keeps Swift from running here; empty when nothing does."""
    if absent := sorted(name for name in PROGRAMS if shutil.which(name) is None):
        return f"not installed: {', '.join(absent)} (Debian: swift-proxy swift-account swift-container swift-object memcached)"
    return ""


def prepare(directory: Path, *, secret_key: str = "", port: int = 0) -> tuple[S3Server, dict[str, list[str]]]:
    """Write configuration and rings below `directory`, which must be on a file system with extended attributes.

    Returns:
        The server as clients see it once its processes run, and their commands by name. Data of an earlier call stays.
    """
    _check_xattr(directory)
    (directory / "devices" / "disk").mkdir(parents=True, exist_ok=True)
    secret_key = secret_key or secrets.token_urlsafe(24)
    proxy_port, memcached_port, *ring_ports = [port or free_port(), *(free_port() for _ in range(4))]
    user = getpass.getuser()
    (directory / "swift.conf").write_text(SWIFT_CONF.format(salt=secrets.token_hex(8)))
    commands = {"memcached": ["memcached", "-l", "127.0.0.1", "-p", str(memcached_port), "-U", "0", "-u", user]}
    for kind, ring_port in zip(RINGS, ring_ports, strict=True):
        _make_ring(directory, kind, ring_port)
        config = directory / f"{kind}-server.conf"
        config.write_text(SERVER_CONF.format(port=ring_port, user=user, directory=directory, kind=kind))
        commands[kind] = _command(directory, f"swift-{kind}-server", config)
    # Where a container server was away, a listing misses what was written meanwhile until the updater has told it.
    commands["updater"] = _command(directory, "swift-object-updater", directory / "object-server.conf")
    config = directory / "proxy-server.conf"
    config.write_text(
        PROXY_CONF.format(
            port=proxy_port,
            user=user,
            directory=directory,
            memcached_port=memcached_port,
            account=ACCOUNT,
            name=USER,
            secret_key=secret_key,
        )
    )
    commands["proxy"] = _command(directory, "swift-proxy-server", config)
    return S3Server(f"http://127.0.0.1:{proxy_port}", f"{ACCOUNT}:{USER}", secret_key), commands


@contextmanager
def swift(directory: Path) -> Iterator[S3Server]:
    """An empty S3 server with its data below `directory`, up until the end of the block.

    Raises:
        RuntimeError: it does not answer in time; the message has the end of its logs.
    """
    server, commands = prepare(directory)
    marker = secrets.token_hex(8)
    environment = {**os.environ, processes.MARKER: marker}
    started = []
    try:
        for name, command in commands.items():
            started.append(processes.start(name, command, env=environment, log_file=directory / f"{name}.log", cwd=directory))
        deadline = time.monotonic() + START_SECONDS
        while not answers(server):
            ended = [service.name for service in started if not processes.is_running(service)]
            if ended or time.monotonic() > deadline:
                names = ended or list(commands)
                logs = "\n".join(f"{name}: {(directory / f'{name}.log').read_text(errors='replace')[-2000:]}" for name in names)
                raise RuntimeError(f"Swift does not answer at {server.endpoint} (ended: {ended}):\n{logs}")
            time.sleep(0.2)
        yield server
    finally:
        processes.end(started, marker)


def answers(server: S3Server) -> bool:
    """Whether the proxy and the servers behind it work: an unsigned request is refused, and only by a proxy that has all of them."""
    try:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{server.endpoint}/", timeout=5).close()
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False
    return True


def _command(directory: Path, program: str, config: Path) -> list[str]:
    path = shutil.which(program)
    assert path is not None, missing()
    return [PYTHON, "-c", LAUNCHER, str(directory), path, str(config), "verbose"]


def _make_ring(directory: Path, kind: str, port: int) -> None:
    builder = directory / f"{kind}.builder"
    builder.unlink(missing_ok=True)
    for arguments in (["create", "4", "1", "0"], ["add", f"r1z1-127.0.0.1:{port}/disk", "1"], ["rebalance"]):
        subprocess.run(["swift-ring-builder", str(builder), *arguments], check=True, capture_output=True)


def _check_xattr(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    try:
        os.setxattr(directory, "user.swift.test", b"1")
    except OSError as error:
        raise ValueError(
            f"{directory}: no extended attributes there ({error}), which Swift needs: choose a directory on another file system"
        ) from error
