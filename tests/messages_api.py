"""A stand-in for Anthropic's Messages API, enough for Claude Code: `python messages_api.py PORTFILE LOGDIR`.

It listens on a free port of the loopback, writes the port to PORTFILE when it is
ready, keeps the body of every message request as LOGDIR/<number>.json, and
answers each with the last line of what the user said, after 'ECHO '. A line
`TOOL {"name": …, "input": {…}}` is answered by that use of a tool, and what
comes of it by 'DONE'. What begins with TWICE is answered in two blocks. Each
answer uses other numbers of tokens, which LOGDIR/<number>.usage has, written
when the answer has been given. As long as there is LOGDIR/failure, requests end as that says: JSON with `status`,
`headers` and `error`, or `reset` alone to have the connection dropped. `SLOW <seconds>` is answered in that time.
"""

from __future__ import annotations

import json
import secrets
import time
from typing import TYPE_CHECKING

import stand_in
from stand_in import keep

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stand_in import Json


class Handler(stand_in.Handler):
    def do_GET(self) -> None:  # noqa: N802 - its name in http.server
        self.answer(404, self.refusal({"type": "not_found_error", "message": self.path}))

    def do_HEAD(self) -> None:  # noqa: N802 - its name in http.server
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:  # noqa: N802 - its name in http.server
        raw = self.body()
        path = self.path.partition("?")[0]
        if path == "/v1/messages/count_tokens":
            self.answer(200, {"input_tokens": 1})
        elif path == "/v1/messages":
            request = json.loads(raw)
            number = next(self.numbers)
            keep(self.log_directory / f"{number:04}.json", request)
            if self.fails():
                return
            self._reply(request, usage_of(number))
            keep(self.log_directory / f"{number:04}.usage", {"model": request["model"], **usage_of(number)})
        else:
            self.do_GET()

    def refusal(self, error: Json) -> Json:
        return {"type": "error", "error": error}

    def _reply(self, request: Json, usage: Json) -> None:
        block = answer_to(request)
        blocks = [{"type": "text", "text": "FIRST"}, block] if last_words(request).startswith("TWICE") else [block]
        end = "tool_use" if block["type"] == "tool_use" else "end_turn"
        message: Json = {
            "id": f"msg_{secrets.token_hex(8)}",  # claude takes two of one id for one
            "type": "message",
            "role": "assistant",
            "model": request["model"],
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            # More of the answer is yet to come.
            "usage": usage | {"output_tokens": 1},
        }
        if not request.get("stream"):
            self.answer(200, message | {"content": blocks, "stop_reason": end, "usage": usage})
            return
        words = last_words(request)
        if words.startswith("SLOW "):
            time.sleep(float(words.split()[1]))
        self.stream(events(message, blocks, end, usage["output_tokens"]))


def events(message: Json, blocks: list[Json], end: str, output_tokens: int) -> Iterator[Json]:
    yield {"type": "message_start", "message": message}
    for index, block in enumerate(blocks):
        if block["type"] == "text":
            start: Json = {"type": "text", "text": ""}
            delta: Json = {"type": "text_delta", "text": block["text"]}
        else:
            start = block | {"input": {}}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        yield {"type": "content_block_start", "index": index, "content_block": start}
        yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    delta = {"stop_reason": end, "stop_sequence": None}
    yield {"type": "message_delta", "delta": delta, "usage": {"output_tokens": output_tokens}}
    yield {"type": "message_stop"}


def usage_of(number: int) -> Json:
    """Return what the answer to that request uses: numbers of which no two sums are the same."""
    lasting = {"ephemeral_5m_input_tokens": number % 11, "ephemeral_1h_input_tokens": number % 5}
    return {
        "input_tokens": 3 + number % 7,
        "output_tokens": 100 + number,
        "cache_read_input_tokens": 10 * number,
        "cache_creation_input_tokens": sum(lasting.values()),
        "cache_creation": lasting,
    }


def answer_to(request: Json) -> Json:
    """Return the block that answers a request."""
    words = last_words(request)
    if new_results(request):
        return {"type": "text", "text": "DONE"}
    if words.startswith("TOOL ") and request.get("tools"):
        use = json.loads(words.removeprefix("TOOL "))
        return {"type": "tool_use", "id": f"toolu_{secrets.token_hex(8)}", "input": {}, **use}
    return {"type": "text", "text": f"ECHO {words}"}


def new_results(request: Json) -> list[Json]:
    """Return the results of tools that came after the last answer, unless somebody has said something since."""
    new: list[Json] = []
    for message in reversed(request["messages"]):
        if message["role"] == "assistant":
            break
        if any("TOOL {" in text for text in texts_of(message)):
            return []
        if isinstance(message["content"], list):
            new += (block for block in message["content"] if block["type"] == "tool_result")
    return new


def last_words(request: Json) -> str:
    """Return the last line that the user said."""
    by_user = (message for message in request["messages"] if message["role"] == "user")
    return stand_in.last_line([text for message in by_user for text in texts_of(message)])


def texts_of(message: Json) -> list[str]:
    content = message["content"]
    if isinstance(content, str):
        return [content]
    return [block["text"] for block in content if block["type"] == "text"]


if __name__ == "__main__":
    stand_in.serve(Handler)
