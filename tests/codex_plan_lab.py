"""Plans of codex for an agent in a home of the test's own; nothing runs."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

from plan_lab import file_of, program, subject_of

from forge_supervisor.harness import Paths
from forge_supervisor.harness.codex import Codex

if TYPE_CHECKING:
    from pathlib import Path

    from forge_supervisor.harness import LaunchPlan, Problem

MODELS = """{"models": [
    {"slug": "gpt-new", "upgrade": null, "supported_reasoning_levels": [{"effort": "low"}, {"effort": "max"}]},
    {"slug": "gpt-old", "upgrade": {"model": "gpt-new"}, "supported_reasoning_levels": [{"effort": "low"}]}
]}"""
SCRIPT = f"""case $1 in
--version) echo 'codex-cli 0.169.0' ;;
debug) cat <<'END'
{MODELS}
END
    ;;
sandbox) [ ! -e "$0.no-sandbox" ] || {{ printf 'a warning\\nbwrap: no\\n' >&2; exit 1; }} ;;
esac"""


def home_of(directory: Path) -> Paths:
    """Make a home with a codex in it."""
    home = directory / "home"
    program(home / ".local/bin/codex", SCRIPT)
    search = (str(home / ".local/bin"), "/usr/bin", "/bin")
    return Paths(home=home, forge=home / ".local/state/forge", agent="scout", search=search)


def plan_of(paths: Paths, **keys: Any) -> LaunchPlan:
    return Codex().plan(subject_of(**keys), paths)


def config_of(paths: Paths, **keys: Any) -> dict[str, Any]:
    return tomllib.loads(file_of(plan_of(paths, **keys), paths.state / ".codex/config.toml").text)


def preflight(paths: Paths, **keys: Any) -> list[Problem]:
    subject = subject_of(**keys)
    return list(Codex().preflight(subject, Codex().plan(subject, paths), paths))
