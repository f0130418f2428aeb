"""What the stand-ins for the APIs of models have in common; each is a program: `python … PORTFILE LOGDIR`."""

from __future__ import annotations

import itertools
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

Json = dict[str, Any]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    log_directory: Path
    numbers: Iterator[int]

    def log_message(self, *_: object) -> None:
        pass

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", "0")))

    def fails(self) -> bool:
        """Have a request end as LOGDIR/failure says, and tell whether there is one."""
        try:
            failure: Json = json.loads((self.log_directory / "failure").read_bytes())
        except FileNotFoundError:
            return False
        if failure.get("reset"):
            self.close_connection = True
            self.connection.close()
        else:
            answer = self.refusal(failure["error"])
            self.answer(failure["status"], answer, headers=failure.get("headers", {}))
        return True

    def refusal(self, error: Json) -> Json:
        """Make the body of an answer that is an error."""
        return {"error": error}

    def stream(self, events: Iterable[Json], headers: Mapping[str, str] | None = None) -> None:
        self.send_response(200)
        for name, value in {**(headers or {}), "Content-Type": "text/event-stream", "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        for event in events:
            self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
        self.close_connection = True

    def answer(self, status: int, body: Json, headers: Mapping[str, str] | None = None) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


def keep(path: Path, content: Any) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content))
    partial.rename(path)


def last_line(texts: list[str]) -> str:
    """Return the last line of the last text."""
    return texts[-1].strip().rpartition("\n")[2] if texts else ""


def serve(handler: type[Handler]) -> None:
    """Listen on a free port of the loopback, and write that to PORTFILE when it is ready."""
    port_file, handler.log_directory = map(Path, sys.argv[1:])
    handler.numbers = itertools.count(1)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    keep(port_file, server.server_port)
    server.serve_forever()
