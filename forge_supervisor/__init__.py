"""Supervises coding agents in tmux with systemd's restart rules and true exit statuses."""

from importlib.metadata import version

__version__ = version("forge-supervisor")
