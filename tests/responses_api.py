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
import json
import secrets
import time
from typing import TYPE_CHECKING

import stand_in
from stand_in import keep

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stand_in import Json

TITLE = "Generate a concise, single-line task title"
"""How the words begin with which codex has its model name a conversation."""
LIMITS = {"x-codex-primary-used-percent": "95", "x-codex-primary-window-minutes": "300"}
"""What an answer has with it when a subscription is nearly used up."""


class Handler(stand_in.Handler):
    def do_GET(self) -> None:  # noqa: N802 - its name in http.server
        with (self.log_directory / "asked").open("a") as asked:
            asked.write(f"{self.command} {self.path}\n")
        if self.headers.get("Upgrade"):
            # Codex prefers a websocket, and does without one at once if it is told so in this way.
            self.answer(426, {})
            return
        self.answer(404, {"error": {"message": self.path, "type": "invalid_request_error", "code": "not_found"}})

    def do_POST(self) -> None:  # noqa: N802 - its name in http.server
        raw = self.body()
        if self.path.partition("?")[0] != "/v1/responses":
            self.do_GET()
            return
        request = json.loads(raw)
        number = next(self.numbers)
        keep(self.log_directory / f"{number:04}.key", self.headers.get("Authorization"))
        keep(self.log_directory / f"{number:04}.json", request)
        if self.fails():
            return
        # Whoever is killed, or interrupted, has nothing of its answer.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._reply(request, usage_of(number))
            keep(self.log_directory / f"{number:04}.usage", {"model": request["model"], **usage_of(number)})

    def _reply(self, request: Json, usage: Json) -> None:
        words = last_words(request)
        if words.startswith("SLOW "):
            time.sleep(float(words.split()[1]))
        response = {"id": f"resp_{secrets.token_hex(8)}", "object": "response", "model": request["model"]}
        headers = LIMITS if words == "NEAR THE LIMIT" else None
        self.stream(events(response, answer_to(request), usage), headers)


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
    return stand_in.last_line([text for item in request["input"] for text in texts_of(item, "user")])


def texts_of(item: Json, *roles: str) -> list[str]:
    if item.get("role") not in roles:
        return []
    content = item["content"]
    return [content] if isinstance(content, str) else [block["text"] for block in content if "text" in block]


if __name__ == "__main__":
    stand_in.serve(Handler)
