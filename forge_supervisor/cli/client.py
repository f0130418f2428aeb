"""A call of io.forge.Supervisor, or a stream of answers. Blocks, and takes the standard library alone."""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING, Any

from forge_supervisor.control import NAME

if TYPE_CHECKING:
    from collections.abc import Iterator

SYSTEMS = f"/run/forge-supervisor/{NAME}"
"""Where the supervisor of the machine listens."""
PATIENCE = 20.0
"""Seconds for what takes no time; others take as long as an agent does to start or stop."""
_ANSWERED_AT_ONCE = frozenset({"List", "Show", "Ping"})
MOST = 64 * 1024 * 1024
"""Bytes of an answer."""


class ForgectlError(Exception):
    """Why forgectl has not done what it was asked; the text is a sentence with the way out."""

    exit_code = 1


class NoSuchAgentError(ForgectlError):
    # As systemctl's for a unit that there is not.
    exit_code = 4


class CallError(ForgectlError):
    """What the supervisor answered; `name` is the error's without its interface."""

    def __init__(self, name: str, parameters: dict[str, Any]) -> None:
        self.name = name
        if name == "NoSuchAgent":
            self.exit_code = NoSuchAgentError.exit_code
        super().__init__(_sentence(name, parameters))


class NotThereError(ForgectlError):
    """No supervisor answers."""


def socket_path() -> str:
    """Tell where the supervisor listens: that of the system, or, if there is one, the caller's own."""
    if given := os.environ.get("FORGE_SOCKET"):
        return given
    own = os.path.join(os.environ.get("XDG_RUNTIME_DIR", ""), "forge-supervisor", NAME)  # noqa: PTH118
    if os.geteuid() != 0 and os.environ.get("XDG_RUNTIME_DIR") and os.path.exists(own):
        return own
    return SYSTEMS


def call(method: str, parameters: dict[str, Any] | None = None, *, patience: float | None = None) -> dict[str, Any]:
    """Ask, and return what is answered. Raises CallError, and NotThereError, after `patience` seconds too.

    By default those are PATIENCE for what takes no time, and without end for what takes an agent's.
    """
    usual = PATIENCE if method in _ANSWERED_AT_ONCE else None
    return next(_answers(method, parameters, more=False, patience=usual if patience is None else patience))


def stream(method: str, parameters: dict[str, Any] | None = None) -> Iterator[dict[str, Any]]:
    """Ask, and yield each of the answers as it comes. Raises CallError and NotThereError."""
    yield from _answers(method, parameters, more=True, patience=None)


def _answers(
    method: str, parameters: dict[str, Any] | None, *, more: bool, patience: float | None
) -> Iterator[dict[str, Any]]:
    asked: dict[str, Any] = {"method": f"{NAME}.{method}", "parameters": parameters or {}}
    if more:
        asked["more"] = True
    path = socket_path()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(patience)
        try:
            connection.connect(path)
            # As it is, for an escape takes up to three times the room; what came in as no UTF-8 goes out as "?".
            connection.sendall(json.dumps(asked, ensure_ascii=False).encode(errors="replace") + b"\0")
            for answer in _messages(connection):
                if "error" in answer:
                    raise CallError(answer["error"].removeprefix(f"{NAME}."), answer.get("parameters", {}))
                yield answer.get("parameters", {})
                if not answer.get("continues"):
                    return
        except (BrokenPipeError, ConnectionResetError):
            pass
        except TimeoutError:
            text = f"the supervisor does not answer within {patience:g} s ({path})"
            raise NotThereError(text) from None
        except OSError as error:
            raise NotThereError(_unreachable(path, error)) from error
    raise NotThereError("the supervisor hung up (it may have been stopped)")


def _messages(connection: socket.socket) -> Iterator[dict[str, Any]]:
    pending = bytearray()
    while chunk := connection.recv(65536):
        pending += chunk
        while (end := pending.find(b"\0")) >= 0:
            yield json.loads(pending[:end])
            del pending[: end + 1]
        if len(pending) > MOST:
            return


def _unreachable(path: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        return f"no supervisor is running ({path}); systemctl status forge-supervisor tells why"
    return f"the supervisor cannot be reached on {path}: {error.strerror or error}"


_SENTENCES = {
    "NoSuchAgent": 'there is no agent "{agent}" {hint}',
    "Disabled": "{agent} is disabled (forgectl enable {agent})",
    "NotRunning": "{agent} is not running, it is {state} (forgectl start {agent})",
    "NotPermitted": "{reason}",
    "Failed": "{reason}",
    "BadConfiguration": "nothing was changed, as the configuration is broken:\n{problems}",
    "TooSlow": "this was too slow to read what happens, and has missed some of it",
}


def _sentence(name: str, parameters: dict[str, Any]) -> str:
    if name not in _SENTENCES:
        return f"{name}: {json.dumps(parameters)}"
    words = {key: "\n".join(value) if isinstance(value, list) else value for key, value in parameters.items()}
    return _SENTENCES[name].format_map(words).rstrip()
