"""Claude Code, unattended: every question of a first start is answered before it is asked.

What is said here about the program was seen on 2.1.330 and is asserted against
the installed binary by tests/claude. Its dialogs default to 'No, exit', and one
to something nobody wants, so none is ever answered by a key press.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_supervisor.harness import File, JsonSeed, LaunchPlan, Paths, Problem, find_program

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from forge_supervisor.config import Agent, HarnessSettings

EFFORTS = ("low", "medium", "high", "xhigh", "max")
CREDENTIAL_VARIABLES = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN")
MOST_READ_BYTES = 64 * 1024 * 1024
MANAGED_SETTINGS = Path("/etc/claude-code/managed-settings.json")

# A start then talks to nobody but the API: no self-update under a running agent, and no
# dialog that a server decides on (new consumer terms, whose default is 'train on my chats').
QUIET = {
    "DISABLE_AUTOUPDATER": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "CLAUDE_CODE_DISABLE_OFFICIAL_MARKETPLACE_AUTOINSTALL": "1",
}


class ClaudeCode:
    honours = frozenset({"model", "effort"})
    requires = frozenset({"role"})
    stop_exit_status = frozenset({143})  # it catches SIGTERM and exits with 128 + 15

    def check(self, agent: Agent) -> Iterable[Problem]:
        if agent.effort not in EFFORTS:  # claude itself ignores such a value without a word
            yield Problem("effort", f'"{agent.effort}" is no effort level (use one of {", ".join(EFFORTS)})')
        model = agent.model
        if model is not None and (model.startswith("-") or not model.isprintable()):
            text = f"{json.dumps(model)} is no model name (use an alias such as opus, or a full id)"
            yield Problem("model", text)

    def plan(self, agent: Agent, settings: HarnessSettings, paths: Paths) -> LaunchPlan:
        program = find_program(settings.binary or "claude", paths.search, home=paths.home)
        settings_file = File(paths.launch / "settings.json", _as_text(_settings(paths)))
        instructions = File(paths.state / "CLAUDE.md", f"# {agent.name}\n\n{agent.role}\n")
        config_file = _config_file(agent.env, paths)
        return LaunchPlan(
            argv=(str(program), *_options(agent, settings_file.path)),
            cwd=paths.state,
            env=QUIET,
            files=(instructions, settings_file),
            seeds=(JsonSeed(config_file, _answers(agent, paths), lock=Path(f"{config_file}.lock")),),
        )

    def preflight(self, agent: Agent, plan: LaunchPlan, paths: Paths) -> Iterable[Problem]:
        if not _has_credentials(agent.env, paths):
            text = f"not logged in: run `sudo -iu {agent.run_as} {' '.join(_login(agent.env, plan))}`"
            yield Problem("", text, fatal=False)

    def version(self, plan: LaunchPlan) -> str:
        program = plan.argv[0]
        search = f"{Path(program).parent}:/usr/local/bin:/usr/bin:/bin"  # an npm install is a script for node
        answer = subprocess.run(
            [program, "--version"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            check=True,
            stdin=subprocess.DEVNULL,
            env={"PATH": search, "LC_ALL": "C.UTF-8", **QUIET},
        )
        return answer.stdout.partition(" ")[0].strip()


def _options(agent: Agent, settings_file: Path) -> Iterator[str]:
    if agent.model is not None:
        yield from ("--model", agent.model)
    yield from ("--effort", agent.effort)
    yield from ("--setting-sources", "project")
    yield from ("--settings", str(settings_file))
    yield "--dangerously-skip-permissions"
    # It waits for a human's answer even in bypass mode. In one word: the option takes any number of values.
    yield "--disallowedTools=AskUserQuestion"


def _settings(paths: Paths) -> dict[str, Any]:
    """Say what only --settings can: the user's settings do not count, and the project's the agent can write."""
    return {
        "skipDangerousModePermissionPrompt": True,
        "enableAllProjectMcpServers": True,
        "claudeMdExcludes": list(_foreign_instructions(paths)),
    }


def _foreign_instructions(paths: Paths) -> Iterator[str]:
    """Name the instruction files above the agent's directory.

    Claude walks up to the root and takes them all for the project's, ~/.claude included.
    """
    for directory in Path(os.path.realpath(paths.state)).parents:
        yield str(directory / "CLAUDE.md")
        yield str(directory / ".claude" / "CLAUDE.md")
        yield str(directory / ".claude" / "rules" / "**")


def _answers(agent: Agent, paths: Paths) -> dict[str, Any]:
    state = Path(os.path.realpath(paths.state))  # a path through a symbolic link does not count
    imports = {"hasClaudeMdExternalIncludesApproved": True, "hasClaudeMdExternalIncludesWarningShown": True}
    projects = {str(state): {"hasTrustDialogAccepted": True, **imports}}
    if "@" in str(agent.role):
        # Of a home that is a git repository, claude looks imports up under the root of that. Trust it does not.
        projects.setdefault(str(_repository(state)), imports)
    answers: dict[str, Any] = {"hasCompletedOnboarding": True, "projects": projects}
    if key := agent.env.get("ANTHROPIC_API_KEY"):
        answers["customApiKeyResponses"] = {"approved": [key[-20:]]}
    return answers


def _repository(directory: Path) -> Path:
    """Return the root of the git repository that the directory lies in, or the directory if it lies in none."""
    return next((parent for parent in (directory, *directory.parents) if (parent / ".git").exists()), directory)


def _config_home(env: Mapping[str, str], paths: Paths) -> Path:
    chosen = env.get("CLAUDE_CONFIG_DIR")
    return paths.state / chosen if chosen else paths.home / ".claude"


def _config_file(env: Mapping[str, str], paths: Paths) -> Path:
    """Find the file that claude calls its global config."""
    legacy = _config_home(env, paths) / ".config.json"
    if legacy.is_file() and legacy.stat().st_size > 0:  # then it goes before .claude.json
        return legacy
    return (_config_home(env, paths) if env.get("CLAUDE_CONFIG_DIR") else paths.home) / ".claude.json"


def _has_credentials(env: Mapping[str, str], paths: Paths) -> bool:
    # `claude auth status` would know best, but it writes to the user's home.
    return (
        any(env.get(name) for name in CREDENTIAL_VARIABLES)
        or any(value for name, value in env.items() if name.startswith("CLAUDE_CODE_USE_"))  # Bedrock, Vertex, …
        or bool(_read_json(_config_home(env, paths) / ".credentials.json"))
        or "primaryApiKey" in _read_json(_config_file(env, paths))
        or "apiKeyHelper" in _read_json(MANAGED_SETTINGS)
    )


def _login(env: Mapping[str, str], plan: LaunchPlan) -> Iterator[str]:
    if chosen := env.get("CLAUDE_CONFIG_DIR"):
        yield from ("env", f"CLAUDE_CONFIG_DIR={chosen}")
    yield from (plan.argv[0], "auth", "login")


def _read_json(path: Path) -> dict[str, Any]:
    """Read what the user may have put there: nothing that is no regular file (a FIFO blocks), and no end of it."""
    try:
        # O_NONBLOCK: open(2) of a FIFO waits for a writer otherwise.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return {}
            content = json.loads(file.read(MOST_READ_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _as_text(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, indent=2) + "\n"
