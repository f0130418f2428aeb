"""Run by a harness's hooks: passes what it reads on to the supervisor, as one datagram, and never stands in the way.

Run as ``python -I -S report.py SOCKET``, with JSON on its stdin; a first line before that names the session. It prints
nothing, ends with 0 whatever happens, and waits for nobody longer than PATIENCE seconds. Standard library only, and
little of it: a turn waits for its start-up time.
"""

import os
import sys

SCRIPT = os.path.realpath(__file__)
MOST_BYTES = 128 * 1024
"""Of a datagram; the kernel takes 208 KiB unless it was told otherwise (unix(7), SO_SNDBUF)."""
MOST_CHARACTERS = 1000
"""Of each text, where all of them together are too long."""
PATIENCE = 0.2
"""Seconds to wait for a supervisor that does not read, socket(7)."""


def shortened(told: bytes) -> bytes:
    if len(told) <= MOST_BYTES:
        return told
    import json  # noqa: PLC0415 - rarely needed, and it takes time

    values = json.loads(told)
    texts = {key: value[:MOST_CHARACTERS] for key, value in values.items() if isinstance(value, str)}
    return json.dumps(texts).encode()[:MOST_BYTES]


def main() -> None:
    import _socket  # noqa: PLC0415 - `socket` takes longer to import than all else

    told = shortened(sys.stdin.buffer.read())
    with_whom = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
    with_whom.settimeout(PATIENCE)
    with_whom.sendto(os.environb.get(b"INVOCATION_ID", b"") + b"\n" + told, sys.argv[1])


if __name__ == "__main__":
    try:  # noqa: SIM105 - contextlib takes time to import
        main()
    except Exception:  # noqa: BLE001, S110 - what goes wrong here is nothing to the agent
        pass
    os._exit(0)
