"""Where a request for source data may be led.

Whoever typed an address may mean a private one. A redirect is another matter: the server chooses where it leads, and a Ray worker
reaches what the server does not (a cloud's metadata service, the Jobs API). So a request may go on to public addresses only. A host's
name is looked up once and the connection goes to the very addresses that were checked, so that a name which changes its address in between
(DNS rebinding) gains nothing. BLISS_PRIVATE_HOSTS has the exceptions.
"""

import socket
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from bliss_ops.names import RefusedHostError, check_reachable, is_ip_address

if TYPE_CHECKING:
    import aiohttp


def options(uri: str) -> dict[str, Any]:
    """Options of fsspec's HTTP file system for an address that somebody typed."""
    import aiohttp

    parts = urlsplit(uri)
    return {
        "get_client": _client,
        "client_kwargs": {
            "first_hand": f"{parts.scheme}://{parts.netloc}",
            # The default ends every request after five minutes, also one that is still streaming a large shard.
            "timeout": aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60),
            # Files come as they are: an encoding of the transport's own would be unpacked in one piece, a bomb included.
            "headers": {"Accept-Encoding": "identity"},
            "auto_decompress": False,
        },
    }


async def _client(*, first_hand: str, **kwargs: Any) -> "aiohttp.ClientSession":
    """A session that goes where it likes at `first_hand`, and to public addresses everywhere else."""
    import aiohttp
    from aiohttp.abc import AbstractResolver, ResolveResult
    from aiohttp.resolver import DefaultResolver
    from yarl import URL

    origin = URL(first_hand).origin()

    class CheckedResolver(AbstractResolver):
        def __init__(self) -> None:
            self.inner = DefaultResolver()

        async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
            found = await self.inner.resolve(host, port, family)
            if (host, port) != (origin.raw_host, origin.port):
                check_reachable(host, [each["host"] for each in found])
            return found

        async def close(self) -> None:
            await self.inner.close()

    async def check_hop(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        url = request.url
        if url.origin() != origin:
            _check_scheme(origin.scheme, url.scheme, url.host or "")
            if is_ip_address(url.host or ""):  # never looked up
                check_reachable(url.host or "", [url.host or ""])
        return await handler(request)

    connector = aiohttp.TCPConnector(resolver=CheckedResolver())
    return aiohttp.ClientSession(connector=connector, middlewares=(check_hop,), **kwargs)


@cache
def guard_hub() -> None:
    """The same rule for the hub's own client, once per process. It looks names up again when it connects; what it is led to comes from
    the hub itself, over TLS."""
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.utils._http import default_client_factory

    hub = urlsplit(constants.ENDPOINT)

    def check_hop(response: Any) -> None:
        target = response.next_request.url if response.next_request is not None else None
        if target is not None and (target.scheme, target.host) != (hub.scheme, hub.hostname):
            _check_scheme(hub.scheme, target.scheme, target.host)
            check_reachable(target.host, [target.host] if is_ip_address(target.host) else _addresses(target.host))

    def factory() -> Any:
        client = default_client_factory()
        client.event_hooks = client.event_hooks | {"response": [*client.event_hooks.get("response", ()), check_hop]}
        return client

    huggingface_hub.set_client_factory(factory)


def _check_scheme(first: str, now: str, host: str) -> None:
    if first == "https" and now == "http":
        raise RefusedHostError(f"a redirect leads from https to http ({host}), where anybody on the way can change the data")


def _addresses(host: str) -> list[str]:
    return [str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
