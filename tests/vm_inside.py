"""What the tests have inside the virtual machine: it runs the commands that come through a virtio-serial port.

One line of JSON a command and one an answer, in turn. The first line of all tells which boot this is.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

PORT = "forge.commands"


def main() -> None:
    descriptor = os.open(device(PORT), os.O_RDWR)
    with open(descriptor, "rb") as requests, open(descriptor, "wb", closefd=False) as answers:  # noqa: PTH123
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
        # A boot that was cut off may have left half a line.
        answers.write(b"\n")
        send(answers, {"boot": boot})
        for request in requests:
            send(answers, execute(**json.loads(request)))


def device(name: str) -> Path:
    (found,) = (path.parent.name for path in Path("/sys/class/virtio-ports").glob("*/name") if named(path, name))
    return Path("/dev", found)


def named(path: Path, name: str) -> bool:
    return path.read_text().strip() == name


def send(answers: Any, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer).encode() + b"\n")
    answers.flush()


def execute(argv: list[str], timeout: float) -> dict[str, Any]:
    try:
        done = subprocess.run(
            argv,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        return {"code": -1, "out": "", "err": f"not within {timeout} s"}
    except OSError as error:
        return {"code": -1, "out": "", "err": str(error)}
    return {"code": done.returncode, "out": done.stdout, "err": done.stderr}


if __name__ == "__main__":
    main()
