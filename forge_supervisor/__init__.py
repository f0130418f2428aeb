"""Supervises coding agents in tmux with systemd's restart rules and true exit statuses."""


def version() -> str:
    """Tell the installed version; not at import, as what it takes is slow to load, and workers have no use for it."""
    from importlib import metadata  # noqa: PLC0415 - see above

    return metadata.version("forge-supervisor")
