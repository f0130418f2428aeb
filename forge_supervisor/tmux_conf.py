"""The configuration of every tmux server that agents are on."""

from pathlib import Path

TMUX_CONF = Path(__file__).with_name("tmux.conf")
"""For ``tmux -f``."""
