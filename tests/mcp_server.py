"""A stand-in MCP server: `python mcp_server.py DIRECTORY TAG [channel|asking]`, on standard input and output.

It writes its environment to DIRECTORY/TAG.json when it is started, and offers a tool `alpha`, which answers 'RAN TAG'.
An asking one asks the user's name instead, and answers 'ASKED' with what was said. As a channel it also sends the
message 'PUSHED', again and again: claude listens only some time after it has connected.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

QUESTION = {
    "message": "Who are you?",
    "requestedSchema": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
}


def answer(method: str, parameters: dict[str, Any], tag: str, *, channel: bool) -> dict[str, Any] | None:
    match method:
        case "initialize":
            experimental: dict[str, Any] = {"experimental": {"claude/channel": {}}} if channel else {}
            return {
                "protocolVersion": parameters["protocolVersion"],
                "capabilities": {"tools": {}, **experimental},
                "serverInfo": {"name": tag, "version": "1"},
            }
        case "tools/list":
            schema = {"type": "object", "properties": {}}
            return {"tools": [{"name": "alpha", "description": f"tool of {tag}", "inputSchema": schema}]}
        case "tools/call":
            return {"content": [{"type": "text", "text": f"RAN {tag}"}]}
    return None


def main() -> None:
    directory, tag, *kind = sys.argv[1:]
    channel, asking = kind == ["channel"], kind == ["asking"]
    asked_for = 0
    note = Path(directory, f"{tag}.json")
    note.parent.mkdir(exist_ok=True)
    partial = note.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(dict(os.environ)))
    partial.rename(note)
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("id") == "question":
            said = json.dumps(request.get("result", request.get("error")))
            say({"id": asked_for, "result": {"content": [{"type": "text", "text": f"ASKED {said}"}]}})
            continue
        if asking and request.get("method") == "tools/call":
            asked_for = request["id"]
            say({"id": "question", "method": "elicitation/create", "params": QUESTION})
            continue
        if "id" not in request:
            if channel and request.get("method") == "notifications/initialized":
                threading.Thread(target=push, daemon=True).start()
            continue
        result = answer(request["method"], request.get("params", {}), tag, channel=channel)
        say({"id": request["id"], **({"result": result} if result is not None else {"error": {"code": -32601}})})


def push() -> None:
    pushed = {"content": "PUSHED", "meta": {"sender": "somebody"}}
    while not threading.Event().wait(1.0):
        say({"method": "notifications/claude/channel", "params": pushed})


def say(message: dict[str, Any]) -> None:
    # In one write: two threads have something to say.
    os.write(1, json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")


if __name__ == "__main__":
    main()
