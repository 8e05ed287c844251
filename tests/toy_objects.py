"""A server of objects in the files of a folder, which passes them on in pieces."""

import secrets
import shutil
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PIECE = 1 << 20


class FileServer:
    """GET, HEAD, PUT and DELETE; ``refuse`` answers methods with a status instead.

    ``garble``: answers to GET of contents whose last byte is wrong. ``sent``, ``received``: bytes of bodies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.refuse: dict[str, int] = {}
        self.garble = 0
        self.asked: Counter[str] = Counter()
        self.sent = self.received = 0
        self._counting = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def answer(self, status: int, size: int = 0) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(size))
                self.end_headers()

            def do_GET(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                file = server.folder / self.path.removeprefix("/cache/")
                server.count(self.command, received=size)
                if status := server.refuse.get(self.command):
                    self.close_connection = True  # the body is not read
                    self.answer(status)
                elif self.command == "PUT":
                    file.parent.mkdir(parents=True, exist_ok=True)
                    part = file.with_name(secrets.token_hex(8))
                    with part.open("wb") as target:
                        while size:
                            piece = self.rfile.read(min(size, PIECE))
                            target.write(piece)
                            size -= len(piece)
                    part.replace(file)
                    self.answer(201)
                elif not file.is_file():
                    self.answer(404)
                elif self.command == "DELETE":
                    file.unlink()
                    self.answer(204)
                else:
                    self.answer(200, size=file.stat().st_size)
                    if self.command == "GET":
                        self.send(file)

            def send(self, file: Path) -> None:
                server.count("", sent=file.stat().st_size)
                if "/cas/" in self.path and server.garble:
                    server.garble -= 1
                    self.wfile.write(file.read_bytes()[:-1] + b"?")
                    return
                with file.open("rb") as source:
                    shutil.copyfileobj(source, self.wfile, PIECE)

            do_HEAD = do_PUT = do_DELETE = do_GET

        self._handler, self.port = Handler, 0
        self.start()
        self.url = f"http://127.0.0.1:{self.port}/cache"

    def start(self) -> None:
        """Listen, after `stop` at the same port."""
        self._http = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler)
        self.port = int(self._http.server_address[1])
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def count(self, method: str, sent: int = 0, received: int = 0) -> None:
        with self._counting:
            self.asked[method] += bool(method)
            self.sent += sent
            self.received += received

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
