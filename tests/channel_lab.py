"""A stand-in for the channel plugin, installed for a user as the real one is, and the feature flags that it needs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from claude_lab import Lab
    from harness_lab import Json

PLUGIN = "discord@claude-plugins-official"


def install(lab: Lab, server: Json) -> None:
    """Put a plugin of that name where `claude plugin install` does, with another server in it."""
    place = lab.home / ".claude/plugins/cache/claude-plugins-official/discord/0.0.4"
    lab.give(place / ".claude-plugin/plugin.json", json.dumps({"name": "discord", "version": "0.0.4"}))
    lab.give(place / ".mcp.json", json.dumps({"mcpServers": {"discord": server}}))
    entry = [{"scope": "user", "installPath": str(place), "version": "0.0.4"}]
    installed = {"version": 2, "plugins": {PLUGIN: entry}}
    lab.give(lab.home / ".claude/plugins/installed_plugins.json", json.dumps(installed))
    marketplace = lab.home / ".claude/plugins/marketplaces/claude-plugins-official"
    python = {"pyright": {"command": "pyright-langserver", "args": [], "extensionToLanguage": {".py": "python"}}}
    offered = [
        {"name": "discord", "description": "x", "source": "./external_plugins/discord"},
        {"name": "pyright-lsp", "description": "x", "source": "./lsp", "strict": False, "lspServers": python},
        {"name": "hinted", "description": "x", "source": "./hinted"},
    ]
    catalog = {"name": "claude-plugins-official", "owner": {"name": "x"}, "plugins": offered}
    lab.give(marketplace / ".claude-plugin/marketplace.json", json.dumps(catalog))
    lab.give(marketplace / "hinted/.claude-plugin/plugin.json", json.dumps({"name": "hinted"}))
    lab.give(marketplace / "external_plugins/discord/.claude-plugin/plugin.json", json.dumps({"name": "discord"}))
    known = {
        "claude-plugins-official": {
            "source": {"source": "github", "repo": "anthropics/claude-plugins-official"},
            "installLocation": str(marketplace),
            "lastUpdated": "2026-01-01T00:00:00.000Z",
        }
    }
    lab.give(lab.home / ".claude/plugins/known_marketplaces.json", json.dumps(known))
    lab.give(lab.home / ".local/bin/bun", "#!/bin/sh\nexit 1\n", mode="755")


def flags_on(lab: Lab) -> None:
    approved = [{"marketplace": "claude-plugins-official", "plugin": "discord"}]
    features = {"cachedGrowthBookFeatures": {"tengu_harbor": True, "tengu_harbor_ledger": approved}}
    lab.give(lab.home / ".claude.json", json.dumps(features))
