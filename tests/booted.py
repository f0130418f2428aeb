"""A machine with a real systemd as its PID 1, made of an overlay of this machine's own root directory.

Everything lies in a private mount namespace: the mounts vanish with the machine, even if the tests are killed, and
nothing is written to the root directory below. It shares the network, and nothing else.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

CHECKOUT = Path(__file__).resolve().parent.parent
# The tests may have been brought somewhere by themselves, with a wheel to be tested.
IS_CHECKOUT = (CHECKOUT / "dev").exists()
INSTALLED = "/opt/forge-supervisor"
# The tests' own modules inside a machine, where every user can read them: the checkout may lie in a private home.
MODULES = "/opt/forge-tests"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BOOT_TIMEOUT_SEC = 60.0

_numbers = itertools.count()
# $1: a directory; $2: the name of the machine; the rest: systemd-nspawn's arguments. Without a systemd outside, nobody
# makes a cgroup for the machine, and two machines must not share one.
BOOT = """
set -eu
umask 022
dir=$1 name=$2
shift 2
if ! [ -d /run/systemd/system ]; then
    for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do
        [ -w "$hierarchy/cgroup.procs" ] || continue
        mkdir -p "$hierarchy/$name"
        echo $$ >"$hierarchy/$name/cgroup.procs"
    done
    set -- --keep-unit "$@"
fi
mkdir -p /run/systemd/nspawn
mount -t tmpfs tmpfs /run/systemd/nspawn
"""

# Only what systemd itself enables may start. The services, timers, mounts and lingering users of this machine belong to
# its operator: two of a database or of a cron job would do harm, and an installed forge-supervisor is not the one under
# test.
OVERLAY = """
mount -t tmpfs tmpfs "$dir"
mkdir "$dir/upper" "$dir/work" "$dir/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$dir/upper,workdir=$dir/work" "$dir/root"
dir=$dir/root
cd "$dir"
rm -rf etc/systemd/system etc/systemd/user etc/rc?.d var/lib/systemd/linger opt/forge-supervisor etc/forge-supervisor
: >etc/fstab
: >etc/machine-id
"""

NSPAWN = """
exec systemd-nspawn --directory="$dir" --machine="$name" --register=no --notify-ready=yes --console=pipe "$@" \
    --boot systemd.unit=multi-user.target
"""


def missing() -> str | None:
    """Why no machine can be booted here, or None."""
    if os.geteuid() != 0:
        return "booting a machine takes root"
    for program in ("systemd-nspawn", "nsenter", "unshare", "setpriv"):
        if shutil.which(program) is None:
            return f"{program} is not installed (./dev test as root installs it)"
    if subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode:
        return "this machine may not mount (no CAP_SYS_ADMIN)"
    return None


@dataclass(frozen=True)
class Machine:
    """A booted machine. Paths and pids are those inside; `leader` is its PID 1 as seen from outside."""

    leader: int

    def command(self, *argv: str | Path, user: str | None = None, env: Mapping[str, str] | None = None) -> list[str]:
        """The argv that runs `argv` inside, from nothing but `env` and what a login would set."""
        home = "/root" if user is None else f"/home/{user}"
        name = user or "root"
        variables = {"PATH": PATH, "HOME": home, "USER": name, "LOGNAME": name, "LANG": "C.UTF-8", **(env or {})}
        as_user = [] if user is None else ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
        # Of a process from outside its cgroup namespace systemd cannot tell the unit, and refuses it (EUNATCH).
        enter = ["sh", "-c", 'echo $$ >"$0" && exec "$@"', f"{self._cgroup()}/cgroup.procs"]
        inside = [*enter, "nsenter", "--all", f"--target={self.leader}", "setpriv", "--pdeathsig=KILL", *as_user]
        return [*inside, "env", "-i", *(f"{key}={value}" for key, value in variables.items()), *map(str, argv)]

    def _cgroup(self) -> Path:
        """The cgroup of its PID 1, as seen from outside."""
        hybrid = Path("/sys/fs/cgroup/unified")
        lines = Path(f"/proc/{self.leader}/cgroup").read_text().splitlines()
        path = next(line.removeprefix("0::") for line in lines if line.startswith("0::"))
        return (hybrid if hybrid.is_dir() else hybrid.parent) / path.lstrip("/")

    def run(
        self,
        *argv: str | Path,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        check: bool = True,
        timeout: float = 60.0,
        input: str | None = None,  # noqa: A002
    ) -> subprocess.CompletedProcess[str]:
        """Run to its end. AssertionError with all output if `check` and it fails."""
        command = self.command(*argv, user=user, env=env)
        done = subprocess.run(command, check=False, text=True, capture_output=True, timeout=timeout, input=input or "")
        assert done.returncode == 0 or not check, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def dev(self, verb: str) -> str:
        """Run ./dev of this checkout as root, with the wheels that ./dev test keeps, if it runs us; what it says.

        Without a checkout do what it does by the wheel alone.
        """
        wheels = os.environ.get("FORGE_TEST_WHEELS")
        if not IS_CHECKOUT:
            return self._by_the_wheel(verb, wheels)
        own = {key: value for key, value in os.environ.items() if key.startswith("PIP_")}
        pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": wheels} if wheels else own
        return self.run(CHECKOUT / "dev", verb, env=pip, timeout=170).stderr

    def _by_the_wheel(self, verb: str, wheels: str | None) -> str:
        place = ("sh", f"{INSTALLED}/share/forge-supervisor/place")
        if verb == "uninstall":
            return self.run(*place, "remove").stderr
        assert verb == "install" and wheels is not None
        pip = (f"{INSTALLED}/bin/pip", "install", "--quiet", "--no-index", "--find-links", wheels)
        self.run("/usr/bin/python3", "-m", "venv", INSTALLED)
        self.run(*pip, "forge-supervisor", timeout=170)
        return self.run(*place, "install").stderr

    def add_user(self, name: str) -> int:
        """Create it with a home and a group of its name; its uid."""
        self.run("useradd", "--create-home", "--user-group", "--shell", "/bin/bash", name)
        return int(self.run("id", "-u", name).stdout)

    def write(self, path: str | Path, text: str, *, mode: int = 0o644, owner: str = "root") -> None:
        self.run("install", "-D", f"--mode={mode:o}", f"--owner={owner}", "/dev/stdin", path, input=text)

    def read(self, path: str | Path) -> str:
        return self.run("cat", path).stdout

    def property(self, unit: str, name: str) -> str:
        """A property of a unit, as systemctl show prints it."""
        return self.run("systemctl", "show", f"--property={name}", "--value", unit).stdout.strip()

    def processes(self, user: str) -> dict[int, str]:
        """Every process of `user`: pid to command line."""
        uid = int(self.run("id", "-u", user).stdout)
        found = {}
        for directory in Path(f"/proc/{self.leader}/root/proc").glob("[0-9]*"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if directory.stat().st_uid == uid:
                    found[int(directory.name)] = (directory / "cmdline").read_text().replace("\0", " ")
        return found

    def journal(self, *matches: str) -> list[dict[str, Any]]:
        """All entries, as journalctl -o json prints them: every value is a string, or None if it is huge."""
        self.run("journalctl", "--sync")
        output = self.run("journalctl", "--output=json", "--all", *matches).stdout
        return [json.loads(line) for line in output.splitlines()]

    def wait_for(
        self, *matches: str, until: Callable[[dict[str, Any]], object], timeout: float = 60.0
    ) -> dict[str, Any]:
        """The first entry, old or to come, for which `until` holds; AssertionError after `timeout` seconds without."""
        follow = self.command("journalctl", "--follow", "--no-tail", "--output=json", "--all", *matches)
        seen = []
        # journalctl ends when its pipe is closed. Killing nsenter instead would leave it to our init to reap, and the
        # machine cannot end before that.
        with subprocess.Popen(follow, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as follower:
            assert follower.stdout is not None
            for line in _lines(follower.stdout, time.monotonic() + timeout):
                entry: dict[str, Any] = json.loads(line)
                if until(entry):
                    return entry
                seen.append(entry.get("MESSAGE"))
        raise AssertionError(f"{matches}: not within {timeout} s; seen:\n" + "\n".join(map(str, seen)))


def _lines(pipe: IO[bytes], deadline: float) -> Iterator[bytes]:
    """Lines as they come, until `deadline` on the monotonic clock or the end."""
    rest = b""
    while select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
        chunk = os.read(pipe.fileno(), 65536)
        if not chunk:
            return
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines


@contextlib.contextmanager
def booted(directory: Path) -> Iterator[Machine]:
    """Boot an overlay of this machine's root directory, its files below `directory` (must be empty)."""
    overlay = directory / "machine"
    overlay.mkdir()
    binds = (f"--bind-ro={CHECKOUT}", f"--bind-ro={CHECKOUT}/tests:{MODULES}")
    with nspawn(overlay, BOOT + OVERLAY + NSPAWN, binds, files=directory) as machine:
        yield machine


@contextlib.contextmanager
def nspawn(root: Path, script: str, options: Sequence[str], *, files: Path) -> Iterator[Machine]:
    """Boot a machine by `script`, and power it off at the end. `files` is where its console's output goes."""
    # Two machines of one name would share a cgroup.
    name = f"forge-test-{os.getpid()}-{next(_numbers)}"
    console = files / "console"
    notify = files / "notify"
    # The machine powers off even when the tests are killed. KILL would be too much: nspawn's child outlives it.
    private = ["setpriv", "--pdeathsig=TERM", "unshare", "--mount", "sh", "-c", script, "sh", str(root), name]
    # the resource limits of systemd are those of cgroup v2
    environment = {"PATH": PATH, "NOTIFY_SOCKET": str(notify), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications, console.open("wb") as log:
            notifications.bind(str(notify))
            process = subprocess.Popen(
                [*private, *options], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
            try:
                machine = _ready(process, notifications, console)
                # A socket that is full and not read would block nspawn; to a closed one it just fails to send.
                notifications.close()
                yield machine
            finally:
                _power_off(process)
    finally:
        notify.unlink(missing_ok=True)
        _remove_cgroups(name)


def _ready(process: subprocess.Popen[bytes], notifications: socket.socket, console: Path) -> Machine:
    """Wait for what nspawn notifies (systemd-nspawn(1), --notify-ready): first its child's pid, later READY."""
    deadline = time.monotonic() + BOOT_TIMEOUT_SEC
    machine = None
    exited = os.pidfd_open(process.pid)
    try:
        while True:
            left = max(0.0, deadline - time.monotonic())
            readable, _, _ = select.select([notifications.fileno(), exited], [], [], left)
            assert notifications.fileno() in readable, f"the machine did not boot:\n{console.read_text()}"
            for line in notifications.recv(4096).decode().splitlines():
                key, _, value = line.partition("=")
                if key == "X_NSPAWN_LEADER_PID":
                    machine = Machine(int(value))
                elif line == "READY=1" and machine is not None:
                    state = machine.run("systemctl", "is-system-running", "--wait", check=False).stdout.strip()
                    assert state in {"running", "degraded"}, f"{state}:\n{console.read_text()}"
                    return machine
    finally:
        os.close(exited)


def _power_off(process: subprocess.Popen[bytes]) -> None:
    """On SIGTERM nspawn has the machine shut itself down. One that does not is killed: all of it dies with PID 1."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
        # A process of the machine whose parent is outside of it, and does not ask for it, keeps it for ever.
        process.wait(60)


def _remove_cgroups(name: str) -> None:
    """Those that BOOT made, from the innermost out. They are busy until the kernel has reaped the last process."""
    for hierarchy in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"):
        for directory, _, _ in os.walk(f"{hierarchy}/{name}", topdown=False):
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline:
                try:
                    Path(directory).rmdir()
                    break
                except OSError:
                    time.sleep(0.05)
