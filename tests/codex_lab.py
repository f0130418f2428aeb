"""The real codex under the whole supervisor, for a user who never ran it, in a network that is only a loopback."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness_lab
from harness_lab import json_of, wait_for
from responses_api import is_for_a_title, new_results, texts_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness_lab import Json

VARIABLE = "FORGE_TEST_CODEX"
MARK = "\u203a"
"""Before the prompt."""
MODEL = "gpt-5.5"
"""Its tools are in the request by their names, not behind a program that the model writes."""


class Lab(harness_lab.Lab):
    harness = "codex"
    variable = VARIABLE
    api = Path(__file__).with_name("responses_api.py")
    # Not /tmp, where codex's sandbox lets everything write.
    place = "/var/tmp"

    def variables(self, **more: str) -> dict[str, str]:
        return {"OPENAI_BASE_URL": f"{self.url}/v1", **more}

    def keyed(self, agent: str) -> dict[str, str]:
        return self.variables(OPENAI_API_KEY=f"sk-proj-{agent:->40}")

    def said(self, request: Json) -> str:
        return said(request)

    def home_of(self, agent: str) -> Path:
        return self.state_of(agent) / ".codex"

    def rollouts(self, agent: str) -> list[Path]:
        return sorted((self.home_of(agent) / "sessions").glob("*/*/*/*.jsonl"))

    def written(self, agent: str) -> str:
        return "".join(path.read_text(errors="replace") for path in self.rollouts(agent))

    def prompt(self, agent: str, number: int = 1) -> int:
        """Wait until the agent's number-th session waits for words; return its pid."""
        pid: int = self.event("agent_started", agent, number)["pid"]
        wait_for(lambda: f"\n{MARK} " in self.screen(agent) and self._holds_a_lock(pid), lambda: self.story(agent))
        return pid

    def _holds_a_lock(self, pid: int) -> bool:
        with contextlib.suppress(OSError):
            return any("thread-writer-locks/" in str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir())
        return False

    def tell(self, agent: str, words: str) -> Json:
        """Say something and wait until it has been answered, and that was written down; return the request."""
        self.say(agent, words)
        self.see(agent, f"ECHO {words}")
        wait_for(lambda: self.turns_over(agent), "the turn is not over")
        return self.request(words)

    def turns_over(self, agent: str) -> bool:
        written = self.written(agent)
        over = len(re.findall('"type":"(?:task_complete|turn_aborted)"', written))
        return written.count('"type":"task_started"') == over

    def use(self, agent: str, tool: str, mark: str, *, namespace: str | None = None, **parameters: Any) -> str:
        """Have the agent's model use a tool; return what it is told of the outcome."""
        call = {"name": tool, "arguments": json.dumps(parameters), **({"namespace": namespace} if namespace else {})}
        self.say(agent, f"[{mark}]\nTOOL {json.dumps(call)}")

        def outcome() -> str | None:
            return next((told for request in self.requests() if (told := outcome_in(request, f"[{mark}]"))), None)

        told = wait_for(outcome, lambda: f"no outcome of {tool}\n{self.story(agent)}")
        wait_for(lambda: self.turns_over(agent), "the turn is not over")
        return told

    def run(self, agent: str, command: str, mark: str) -> str:
        """Have the agent's model run a command; return what it is told of it."""
        return self.use(agent, "exec_command", mark, cmd=command)

    def bearers(self) -> list[str]:
        """Return what each request was authorized by."""
        return [json.loads(path.read_bytes()) for path in sorted(self.requests_in.glob("*.key"))]

    def authorized(self) -> list[tuple[Json, str]]:
        """Return the agents' own requests, each with what it was authorized by."""
        files = sorted(self.requests_in.glob("*.json"))
        both = [(json_of(file), json.loads(file.with_suffix(".key").read_bytes())) for file in files]
        return [(request, bearer) for request, bearer in both if not is_for_a_title(request)]

    def words(self) -> list[Json]:
        """Return the requests of the agents themselves, without those for titles."""
        return [request for request in self.requests() if not is_for_a_title(request)]


def said(request: Json) -> str:
    """Return all that reached codex as the user's words, what it read in files among them."""
    return "\n".join(text for item in request.get("input", []) for text in texts_of(item, "user"))


def outcome_in(request: Json, mark: str) -> str | None:
    """Return the result of the tool that was used in the turn with that mark, if it is the request's last one."""
    results = new_results(request) if request else []
    turns = [text for item in request.get("input", []) for text in texts_of(item, "user") if "TOOL {" in text]
    return json.dumps(results[-1]["output"]) if results and turns and mark in turns[-1] else None


def body(request: Json) -> str:
    return json.dumps(request)


@contextlib.contextmanager
def lab() -> Iterator[Lab]:
    with harness_lab.lab_of(Lab) as made:
        yield made


__all__ = ["MODEL", "VARIABLE", "Lab", "body", "json_of", "lab", "outcome_in", "said"]
