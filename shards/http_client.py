"""Options of fsspec's HTTP file system for servers of strangers.

Input: the URL that the user named. Output: options. Guarantees: bytes are received as they are sent, so that a small
response cannot unpack to a large one; a redirect, or another answer of the name server, does not lead to an address
that only this machine can reach, unless the user's URL is itself such an address.
"""

import ipaddress
import socket
from typing import Any

from aiohttp import ClientSession, ClientTimeout, TCPConnector
from yarl import URL

from prep.core.errors import UserError
from shards.images.client import is_public


def options_of(url: str, silence: float) -> dict[str, Any]:
    """Return the options for a URL.

    Args:
        url: http or https.
        silence: seconds without a byte after which a transfer fails.
    """
    host = URL(url).host or ""
    try:
        given = [str(found[4][0]) for found in socket.getaddrinfo(host, None)]
    except OSError:
        given = []  # the request fails for the same reason
    private = bool(given) and not any(map(is_public, given))
    link_local = any(map(_is_link_local, given))

    def connect(address: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, (number, *_) = address
        if not is_public(number) and (not private or (_is_link_local(number) and not link_local)):
            raise UserError(f"{url} leads to {number}, which is not a public address; correct the location")
        return socket.socket(family, kind, protocol)

    async def session(**settings: Any) -> ClientSession:
        return ClientSession(connector=TCPConnector(socket_factory=connect), auto_decompress=False, **settings)

    return {
        "get_client": session,
        "client_kwargs": {
            "timeout": ClientTimeout(total=None, sock_connect=silence, sock_read=silence),
            "headers": {"Accept-Encoding": "identity"},
        },
    }


def _is_link_local(address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        parsed = parsed.ipv4_mapped or parsed
    return parsed.is_link_local
