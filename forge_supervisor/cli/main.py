"""The command ``forgectl``."""

from __future__ import annotations


def main() -> None:
    raise NotImplementedError
