"""Claude Code, unattended and bounded.

Every question is answered before it is asked, and nothing but what was declared for an agent reaches it.

What is said here about the program was seen on 2.1.330 and is asserted against
the installed binary by tests/claude. Its dialogs default to 'No, exit', and one
to something nobody wants, so none is ever answered by a key press.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_supervisor.config import Problem
from forge_supervisor.harness import File, JsonSeed, LaunchPlan, find_program, said_to
from forge_supervisor.harness.claude_code import (
    activity,
    consult,
    discord,
    grants,
    login,
    names,
    sessions,
    settings,
    transcripts,
)
from forge_supervisor.harness.granted import effort_problems, server_secrets
from forge_supervisor.harness.reading import read_json
from forge_supervisor.secrets import SecretRef

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from forge_supervisor.activity import Reported, Seen
    from forge_supervisor.config import Agent, Library
    from forge_supervisor.harness import Paths, Subject
    from forge_supervisor.harness.transcripts import MessageUsage
    from forge_supervisor.policy import Exit

# Tools that wait for somebody's answer, whatever the permissions.
_ASKING = ("AskUserQuestion", "EnterPlanMode", "ExitPlanMode")


class ClaudeCode:
    honours = frozenset(
        {
            "add_dirs",
            "allowed_tools",
            "budget",
            "discord_bot",
            "effort",
            "extra_args",
            "inherit",
            "mcp_servers",
            "model",
            "permissions",
            "plugins",
            "ready_timeout_sec",
            "resume",
            "skills",
        }
    )
    requires = frozenset({"role"})
    # Ctrl-K, Ctrl-U: both sides of the cursor; what they take away can be had back with Ctrl-Y.
    clearing_key = "\x0b\x15"
    stop_exit_status = frozenset({143})  # it catches SIGTERM and exits with 128 + 15

    def check(self, agent: Agent, granted: Library) -> Iterable[Problem]:
        permissions = agent.permissions
        yield from effort_problems(agent.effort, names.EFFORTS)
        yield from names.model_problems(agent.model)
        yield from names.rule_problems("allowed_tools", agent.allowed_tools, allow=True)
        yield from names.rule_problems("permissions.allow", permissions.allow, allow=True)
        yield from names.rule_problems("permissions.deny", permissions.deny, allow=False)
        yield from names.server_problems(granted.mcp_servers)
        yield from names.option_problems(agent.extra_args)
        if permissions.skip_prompts:
            text = "has no effect: permissions.skip_prompts allows all that is not denied (set it to false)"
            for key, rules in (("allowed_tools", agent.allowed_tools), ("permissions.allow", permissions.allow)):
                if rules:
                    yield Problem(key, text, fatal=False)

    def secrets(self, granted: Library) -> Iterable[SecretRef]:
        yield from server_secrets(granted)
        for name, bot in granted.discord.bots.items():
            yield SecretRef(f"discord.bots.{name}.token_file", discord.TOKEN, bot.token_file)

    def plan(self, subject: Subject, paths: Paths) -> LaunchPlan:
        agent, granted = subject.agent, subject.granted
        program = find_program(subject.settings.binary or "claude", paths.search, home=paths.home)
        instructions = File(paths.state / "CLAUDE.md", f"# {agent.name}\n\n{agent.role}\n", ("role",))
        bot = granted.bot
        session = sessions.next_of(subject, paths)
        return LaunchPlan(
            argv=(str(program), *_options(subject, paths, session)),
            cwd=paths.state,
            env={**settings.environment(subject), **(discord.environment(bot, paths) if bot is not None else {})},
            folders=(*settings.barrier(paths), *((paths.discord,) if bot is not None else ())),
            files=(
                instructions,
                *grants.files(granted, paths),
                *settings.files(subject, paths),
                session.file(paths),
                *(discord.files(bot, paths) if bot is not None else ()),
            ),
            links=tuple(grants.links(subject, paths)),
            seeds=(
                login.answers(subject, paths),
                *(discord.seeds(subject, paths) if bot is not None else ()),
                *_forgotten_failures(subject, paths),
            ),
            resumes=session.is_resumed,
        )

    def watched(self, subject: Subject, paths: Paths, pid: int) -> Sequence[Path]:
        return activity.watched(subject, paths, pid)

    def observe(self, subject: Subject, paths: Paths, pid: int) -> Seen | None:
        return activity.observe(subject, paths, pid)

    def reported(self, told: Mapping[str, Any]) -> Reported:
        return activity.reported(told)

    def unsendable(self, text: str) -> str | None:
        return activity.unsendable(text)

    def preflight(self, subject: Subject, plan: LaunchPlan, paths: Paths) -> Iterable[Problem]:
        yield from grants.problems(subject, paths)
        yield from discord.problems(subject, plan, paths)
        yield from settings.problems(subject, paths)
        if not login.has_credentials(subject.env, paths):
            way_out = login.command(subject, plan, "auth", "login")
            yield Problem("", f"not logged in: run `{way_out}`", fatal=False)

    def consult(self, subject: Subject, plan: LaunchPlan) -> Iterable[Problem]:
        return consult.consult(subject, plan)

    def unresumable(self, exit_: Exit, screen: Sequence[str]) -> bool:
        return sessions.unresumable(exit_, screen)

    def version(self, plan: LaunchPlan) -> str:
        return said_to(plan.argv[0], "--version", **settings.QUIET).partition(" ")[0].strip()

    def transcripts(self, agent: Agent, paths: Paths) -> Iterable[Path]:
        return transcripts.files(agent, paths)

    def usage_in(self, line: bytes, transcript: Path) -> MessageUsage | None:  # noqa: ARG002 - each line says it all
        return transcripts.usage_in(line)


def _options(subject: Subject, paths: Paths, session: sessions.Next) -> Iterator[str]:
    agent = subject.agent
    if agent.model is not None:
        yield from ("--model", agent.model)
    yield from ("--effort", agent.effort)
    yield from ("--mcp-config", str(grants.mcp_file(paths)))
    for directory in grants.plugin_directories(subject.granted, paths):
        yield from ("--plugin-dir", str(directory))
    yield from ("--settings", str(settings.launch_file(paths)))
    yield from ("--setting-sources", "user,project" if "user-settings" in agent.inherit else "project")
    yield from ("--append-system-prompt-file", str(grants.catalog_file(paths)))
    if agent.permissions.skip_prompts:
        yield "--dangerously-skip-permissions"
    else:
        yield from ("--permission-mode", "default" if agent.permissions.unlisted == "ask" else "dontAsk")
    if subject.granted.bot is not None:
        yield from ("--channels", f"plugin:{discord.PLUGIN}")
    if settings.is_unattended(agent):
        # In one word: the option takes any number of values.
        yield f"--disallowedTools={','.join(_ASKING)}"
    yield from session.options()
    yield from agent.extra_args


def _forgotten_failures(subject: Subject, paths: Paths) -> Iterator[JsonSeed]:
    """Have claude try plugins' servers again: it does not start one for a quarter of an hour after it failed once."""
    names_of_plugins = {grants.plugin_name(path) for path in grants.plugin_directories(subject.granted, paths)}
    if subject.granted.bot is not None:
        names_of_plugins.add("discord")
    file = login.config_home(subject.env, paths) / "mcp-needs-auth-cache.json"
    failed = [
        key for key in read_json(file) if key.startswith("plugin:") and key.split(":")[1] in names_of_plugins
    ]
    if failed:
        yield JsonSeed(file, {}, Path(f"{file}.lock"), ("plugins", "discord_bot"), frozenset(failed))
