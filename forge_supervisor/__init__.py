"""Supervises coding agents in tmux with systemd's restart rules and true exit statuses."""

from pathlib import Path

TMUX_CONF = Path(__file__).with_name("tmux.conf")
"""For ``tmux -f``: of every tmux server that agents are on."""


def version() -> str:
    """Tell the installed version; not at import, as what it takes is slow to load, and workers have no use for it."""
    from importlib import metadata  # noqa: PLC0415 - see above

    return metadata.version("forge-supervisor")
