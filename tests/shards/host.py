"""A real HTTP server on loopback that serves files, with configurable faults."""

import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Request(BaseHTTPRequestHandler):
    """A request handler with the faults of real hosts."""

    protocol_version = "HTTP/1.1"
    server: "Host"

    def do_GET(self):
        with self.server.lock:
            self.server.asked[self.path] += 1
            number = self.server.asked[self.path]
            self.server.under_way += 1
            self.server.most_under_way = max(self.server.most_under_way, self.server.under_way)
        try:
            if self.path in self.server.faults:
                self.server.faults[self.path](self, number)
            elif self.path in self.server.files:
                self.answer(200, self.server.files[self.path])
            else:
                self.answer(404)
        finally:
            with self.server.lock:
                self.server.under_way -= 1

    def answer(self, status, body=b"", headers=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def serve(self):
        self.answer(200, self.server.files[self.path])

    def ranged(self, body):
        """Answer a request for a range of bytes."""
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        part = body[int(first) : int(last) + 1]
        self.answer(206, part, {"Content-Range": f"bytes {first}-{last}/{len(body)}"})

    def reset(self):
        """Close the connection with a TCP reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def truncate(self, body):
        """Announce the whole body, send half of it and close the connection."""
        self.answer(200, body[: len(body) // 2], {"Content-Length": str(len(body))})
        self.close_connection = True

    def hang(self, seconds=3.0):
        """Send nothing until the client disconnects, at most for `seconds`."""
        end = time.monotonic() + seconds
        self.connection.settimeout(0.05)
        while time.monotonic() < end:
            try:
                if not self.connection.recv(1):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        self.close_connection = True

    def log_message(self, *_):
        pass


class Host(ThreadingHTTPServer):
    """A server that counts the requests by path."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port=0, address="127.0.0.1"):
        super().__init__((address, port), Request)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, Callable[[Request, int], None]] = {}
        self.asked: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.under_way = self.most_under_way = 0
        self.url = f"http://{address}:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, *_):
        """Ignore clients that disconnect."""
