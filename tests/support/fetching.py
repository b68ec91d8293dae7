"""A server on the loopback address, from which tests fetch over http(s); it answers by path."""

import http.server
import ssl
import threading
from pathlib import Path

CAT = Path(__file__).parents[1] / "data/pictures/cat.jpg"
BODY = bytes(range(256)) * 40
CHUNKED = {"Transfer-Encoding": "chunked", "Content-Length": None}


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by path; the requested paths are in `asked`."""

    asked: list[str]
    ended: threading.Event

    def do_GET(self) -> None:
        self.asked.append(self.path)
        path, _, query = self.path.partition("?")
        if path == "/redirect":
            self.answer(302, b"", Location=query)
        elif path == "/circle":
            self.answer(307, b"", Location="/circle")
        elif path == "/nowhere":
            self.answer(302, b"")
        elif path == "/cat":
            self.answer(200, CAT.read_bytes())
        elif path == "/gzip":
            self.answer(200, BODY, **{"Content-Encoding": "gzip"})
        elif path == "/short":
            self.answer(200, BODY, **{"Content-Length": str(len(BODY) + 5)})
        elif path == "/unsized":
            self.answer(200, BODY, **{"Content-Length": None})
        elif path == "/chunks":
            self.answer(200, chunk(BODY[:100]) + chunk(BODY[100:]) + chunk(b""), **CHUNKED)
        elif path == "/chunks-cut":
            self.answer(200, chunk(BODY)[:-7], **CHUNKED)
        elif path == "/chunk-of-minus-one":
            self.answer(200, b"-1\r\n" + BODY * 2, **CHUNKED)
            self.wfile.flush()
            self.ended.wait()
        elif path == "/headers":
            self.answer(200, BODY, **{"X-Long": "x" * 70_000})
        elif path == "/reason":
            self.wfile.write(b"HTTP/1.0 418 " + b"\x1b[31mtea " * 1000 + b"\r\n\r\n")
        elif path == "/slow":
            self.answer(200, BODY, **{"Content-Length": None})
            self.wfile.flush()
            self.ended.wait()
        elif path == "/silent":
            self.ended.wait()
        elif path == "/garbage":
            self.wfile.write(b"what?\r\n\r\n")
        elif path.endswith("/missing"):
            self.answer(404, b"no")
        else:
            self.answer(200, BODY)

    def answer(self, status: int, body: bytes, **headers: str | None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: the test's own output is enough."""


class Server:
    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.handler = type("Own", (Handler,), {"asked": [], "ended": threading.Event()})
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self.handler)
        if context:
            self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        scheme = "https" if context else "http"
        self.url = f"{scheme}://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,))
        self.thread.start()

    def close(self) -> None:
        self.handler.ended.set()
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()
