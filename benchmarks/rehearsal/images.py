"""An image host in a process of its own, with the faults of a real one.

    python -m benchmarks.rehearsal.images --port 8767

Input: requests for ``/images/I/<id>...``. Output: the picture of the id, or a fault; ``/stats`` gives the number of
answers by kind. Guarantees: the faults are decided by hashes of the address and of the number of the attempt: GONE of
the addresses are 404 for ever; an attempt in REFUSING of the cases is answered with 503, and with it the next requests
(a burst); an attempt in TRUNCATED of the cases ends in the middle of the body.
"""

import argparse
import asyncio
import json
import re
from collections import Counter
from functools import partial

from xxhash import xxh3_64_intdigest

from benchmarks.rehearsal.pictures import PER_SHAPE, Pool

GONE, REFUSING, TRUNCATED = 0.01, 0.005, 0.001
BURST = 8  # requests
_NUMBER = re.compile(rb"/images/I/[47]1([0-9a-f]{8,})L")
_REASONS = {200: b"OK", 404: b"Not Found", 503: b"Service Unavailable"}


class Host:
    """Decides what a request is answered with.

    Args:
        pool: the photos of the pictures.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._attempts: Counter[bytes] = Counter()
        self._burst = 0
        self.answers: Counter[str] = Counter()

    def answer(self, path: bytes) -> tuple[int, bytes, bool]:
        """Return status, body, and whether only half of it is sent."""
        if path == b"/stats":
            return 200, json.dumps(self.answers).encode(), False
        self._attempts[path] += 1
        attempt = self._attempts[path]
        if self._burst == 0 and _fraction(path, attempt) < REFUSING / BURST:
            self._burst = BURST
        if self._burst:
            self._burst -= 1
            return self._count("503", 503)
        found = _NUMBER.match(path)
        if not found or _fraction(path, 0) < GONE:
            return self._count("404", 404)
        body = self._pool.picture(int(found[1], 16))
        is_cut = 0.5 < _fraction(path, attempt) < 0.5 + TRUNCATED
        self.answers["truncated" if is_cut else "ok"] += 1
        return 200, body, is_cut

    def _count(self, name: str, status: int) -> tuple[int, bytes, bool]:
        self.answers[name] += 1
        return status, b"", False


def _fraction(path: bytes, attempt: int) -> float:
    return xxh3_64_intdigest(path, attempt) / 2**64


class Connection(asyncio.Protocol):
    """A connection that is kept open; a client that asks again before its answer is not expected.

    Args:
        host: answers the requests.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer each request that is complete."""
        *requests, self._received = (self._received + data).split(b"\r\n\r\n")
        for request in requests:
            status, body, is_cut = self._host.answer(request.split(b" ", 2)[1])
            head = b"HTTP/1.1 %d %b\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
            sent = body[: len(body) // 2] if is_cut else body
            self._transport.write(head % (status, _REASONS[status], len(body)) + sent)
            if is_cut:
                self._transport.close()


async def serve(port: int, per_shape: int = PER_SHAPE) -> None:
    """Serve until the process is terminated; print the URL when ready."""
    host = Host(Pool(per_shape=per_shape))
    server = await asyncio.get_running_loop().create_server(partial(Connection, host), "127.0.0.1", port, backlog=512)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m benchmarks.rehearsal.images", description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--per-shape", type=int, default=PER_SHAPE, help="photos of each shape in the pool")
    chosen = parser.parse_args()
    asyncio.run(serve(chosen.port, chosen.per_shape))
