"""The varlink interface io.forge.Supervisor: what forgectl, and anybody's own program, asks the supervisor."""

NAME = "io.forge.Supervisor"
"""Of the interface, and of its socket in the runtime directory."""
LONGEST_TEXT = 100_000
"""Characters that can be sent to an agent at once."""
