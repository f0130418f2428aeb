"""A stand-in for OpenAI's Responses API, enough for codex: `python responses_api.py PORTFILE LOGDIR`.

It listens on a free port of the loopback, writes the port to PORTFILE when it is ready, keeps the body of every request
for a response as LOGDIR/<number>.json and what it was authorized by as LOGDIR/<number>.key, and answers each with the
last line of what the user said, after 'ECHO '. A line `TOOL {"name": …, "arguments": "…"}` is answered by that call
of a tool, or whatever item it is, and what comes of it by 'DONE'. Each answer uses other numbers of tokens, which
LOGDIR/<number>.usage has, written when the answer has been given. As long as there is LOGDIR/failure, requests end as
that says: JSON with `status`, `headers` and `error`, or `reset` alone to have the connection dropped. `SLOW <seconds>`
is answered in that time. Of what else it is asked for, LOGDIR/asked has a line each.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import secrets
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Json = dict[str, Any]
TITLE = "Generate a concise, single-line task title"
"""How the words begin with which codex has its model name a conversation."""


LIMITS = {"x-codex-primary-used-percent": "95", "x-codex-primary-window-minutes": "300"}
"""What an answer has with it when a subscription is nearly used up."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    log_directory: Path
    numbers: Iterator[int]

    def do_GET(self) -> None:
        with (self.log_directory / "asked").open("a") as asked:
            asked.write(f"{self.command} {self.path}\n")
        if self.headers.get("Upgrade"):
            # Codex prefers a websocket, and does without one at once if it is told so in this way.
            self._answer(426, {})
            return
        self._answer(404, {"error": {"message": self.path, "type": "invalid_request_error", "code": "not_found"}})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if self.path.partition("?")[0] != "/v1/responses":
            self.do_GET()
            return
        request = json.loads(raw)
        number = next(self.numbers)
        keep(self.log_directory / f"{number:04}.key", self.headers.get("Authorization"))
        keep(self.log_directory / f"{number:04}.json", request)
        if failure := self._failure():
            self._fail(failure)
            return
        # Whoever is killed, or interrupted, has nothing of its answer.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._reply(request, usage_of(number))
            keep(self.log_directory / f"{number:04}.usage", {"model": request["model"], **usage_of(number)})

    def log_message(self, *_: object) -> None:
        pass

    def _failure(self) -> Json:
        try:
            failure: Json = json.loads((self.log_directory / "failure").read_bytes())
        except FileNotFoundError:
            return {}
        return failure

    def _fail(self, failure: Json) -> None:
        if failure.get("reset"):
            self.close_connection = True
            self.connection.close()
            return
        self._answer(failure["status"], {"error": failure["error"]}, headers=failure.get("headers", {}))

    def _reply(self, request: Json, usage: Json) -> None:
        words = last_words(request)
        if words.startswith("SLOW "):
            time.sleep(float(words.split()[1]))
        self.send_response(200)
        for name, value in LIMITS.items() if words == "NEAR THE LIMIT" else ():
            self.send_header(name, value)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        response = {"id": f"resp_{secrets.token_hex(8)}", "object": "response", "model": request["model"]}
        for event in events(response, answer_to(request), usage):
            self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
        self.close_connection = True

    def _answer(self, status: int, body: Json, headers: Mapping[str, str] | None = None) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


def events(response: Json, item: Json, usage: Json) -> Iterator[Json]:
    yield {"type": "response.created", "response": {**response, "status": "in_progress", "output": []}}
    yield {"type": "response.output_item.added", "output_index": 0, "item": item}
    if item["type"] == "message":
        text = item["content"][0]["text"]
        place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
        yield {"type": "response.output_text.delta", **place, "delta": text}
    yield {"type": "response.output_item.done", "output_index": 0, "item": item}
    done = {**response, "status": "completed", "output": [item], "usage": usage}
    yield {"type": "response.completed", "response": done}


def usage_of(number: int) -> Json:
    """Return what the answer to that request uses: numbers of which no two sums are the same."""
    cached, written, fresh, output = 10 * number, number % 11, 3 + number % 7, 100 + number
    return {
        "input_tokens": cached + written + fresh,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": number % 5},
        "total_tokens": cached + written + fresh + output,
    }


def keep(path: Path, content: Any) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content))
    partial.rename(path)


def answer_to(request: Json) -> Json:
    """Return the item that answers a request."""
    if is_for_a_title(request):
        return message('{"title": "A title"}')
    if request["input"][-1].get("type") == "compaction_trigger":
        return {"type": "compaction", "id": f"cmp_{secrets.token_hex(8)}", "encrypted_content": "COMPACTED"}
    words = last_words(request)
    if new_results(request):
        return message("DONE")
    if words.startswith("TOOL "):
        item = {"type": "function_call", "arguments": "{}", **json.loads(words.removeprefix("TOOL "))}
        return {"id": f"fc_{secrets.token_hex(8)}", "call_id": f"call_{secrets.token_hex(8)}", **item}
    return message(f"ECHO {words}")


def message(text: str) -> Json:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    return {"type": "message", "role": "assistant", "id": f"msg_{secrets.token_hex(8)}", "content": content}


def is_for_a_title(request: Json) -> bool:
    return any(text.startswith(TITLE) for item in request["input"] for text in texts_of(item, "user"))


def new_results(request: Json) -> list[Json]:
    """Return what came of tools after the last time that somebody said something."""
    new: list[Json] = []
    for item in reversed(request["input"]):
        if texts_of(item, "user"):
            break
        if str(item.get("type")).endswith("_output"):
            new.append(item)
    return new


def last_words(request: Json) -> str:
    """Return the last line that the user said."""
    texts = [text for item in request["input"] for text in texts_of(item, "user")]
    return texts[-1].strip().rpartition("\n")[2] if texts else ""


def texts_of(item: Json, *roles: str) -> list[str]:
    if item.get("role") not in roles:
        return []
    content = item["content"]
    return [content] if isinstance(content, str) else [block["text"] for block in content if "text" in block]


def main() -> None:
    port_file, log_directory = map(Path, sys.argv[1:])
    Handler.log_directory = log_directory
    Handler.numbers = itertools.count(1)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    partial = port_file.with_suffix(".partial")
    partial.write_text(str(server.server_port))
    partial.rename(port_file)
    server.serve_forever()


if __name__ == "__main__":
    main()
