"""The real claude under the whole supervisor, for a user who never ran it, in a network that is only a loopback."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness_lab
from harness_lab import json_of, wait_for
from messages_api import new_results, texts_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness_lab import Json

VARIABLE = "FORGE_TEST_CLAUDE"


class Lab(harness_lab.Lab):
    harness = "claude-code"
    variable = VARIABLE
    api = Path(__file__).with_name("messages_api.py")

    @property
    def claude(self) -> str:
        return self.program

    def variables(self, **more: str) -> dict[str, str]:
        return {"ANTHROPIC_BASE_URL": self.url, **more}

    def keyed(self, agent: str) -> dict[str, str]:
        return self.variables(ANTHROPIC_API_KEY=f"sk-ant-api03-{agent:->40}")

    def said(self, request: Json) -> str:
        return said(request)

    def prompt(self, agent: str, number: int = 1, *, sessions: Path | None = None) -> int:
        """Wait until the agent's number-th session waits for words; return its pid."""
        pid: int = self.event("agent_started", agent, number)["pid"]
        # Claude writes it when the last of its questions is behind it.
        file = (sessions or self.home / ".claude/sessions") / f"{pid}.json"
        wait_for(lambda: json_of(file).get("status") == "idle", lambda: self.story(agent))
        return pid

    def idle(self, agent: str) -> None:
        """Wait until the agent's present session waits for words (again)."""
        events = [(event["event"], event.get("agent")) for event in self.events()]
        self.prompt(agent, events.count(("agent_started", agent)))

    def use(self, agent: str, tool: str, mark: str, **parameters: Any) -> str:
        """Have the agent's model use a tool; return what it is told of the outcome."""
        self.idle(agent)
        self.say(agent, f"[{mark}]\nTOOL {json.dumps({'name': tool, 'input': parameters})}")

        def outcome() -> str | None:
            return next((told for request in self.requests() if (told := outcome_in(request, f"[{mark}]"))), None)

        return wait_for(outcome, lambda: f"no outcome of {tool}\n{self.story(agent)}")


def said(request: Json) -> str:
    """Return all that reached claude as the user's words, what it read in files among them."""
    return "\n".join(text for message in request["messages"] if message["role"] == "user" for text in texts_of(message))


def outcome_in(request: Json, mark: str) -> str | None:
    """Return the result of the tool that was used in the turn with that mark, if it is the request's last one."""
    results = new_results(request)
    turns = [text for message in request["messages"] for text in texts_of(message) if "TOOL {" in text]
    return json.dumps(results[-1]) if results and turns and mark in turns[-1] else None


@contextlib.contextmanager
def lab() -> Iterator[Lab]:
    with harness_lab.lab_of(Lab) as made:
        yield made
