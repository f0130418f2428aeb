"""The supervisors that are compared, each as its own documentation has it run, with no delay where one can be set.

Inside the machine; standard library only. All run the same program as the same user, `bench`.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

PROGRAM = "/opt/bench/stamp"
USER = "bench"


def call(*argv: str) -> str:
    done = subprocess.run(argv, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def main_pid(unit: str) -> list[int]:
    pid = int(call("systemctl", "show", "--property=MainPID", "--value", unit))
    return [pid] if pid else []


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()))


def write(path: str, text: str, mode: int = 0o644) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")
    Path(path).chmod(mode)


class Peer:
    """One supervisor that is a service of the machine."""

    name = ""
    unit = ""
    command = ""
    kills = 34
    """How many in a round."""
    spread = 0.3
    """Seconds among which the moment of each is at random, as what polls must not always be hit at the same point."""

    def prepare(self, names: list[str]) -> None:
        """Write its configuration, and have it known."""
        raise NotImplementedError

    def start(self) -> None:
        """From nothing: its daemon, and all programs."""
        call("systemctl", "start", "--no-block", self.unit)

    def stop(self) -> None:
        call("systemctl", "stop", self.unit)

    def start_all(self) -> list[str]:
        """By which command all are started in a daemon that runs."""
        raise NotImplementedError

    def stop_all(self) -> list[str]:
        raise NotImplementedError

    def status(self) -> list[str]:
        raise NotImplementedError

    def pids(self) -> list[int]:
        """The supervisor's own processes."""
        return main_pid(self.unit)

    def beside(self) -> list[int]:
        """What else it takes, but for the programs themselves."""
        return []

    def _service(self) -> None:
        write(f"/run/systemd/system/{self.unit}", f"[Service]\nType=exec\nExecStart={self.command}\n")
        call("systemctl", "daemon-reload")


class Forge(Peer):
    name = "forge-supervisor"
    unit = "forge-supervisor.service"

    def prepare(self, names: list[str]) -> None:
        restart = 'restart = {policy = "always", delay_sec = 0, limit_burst = 0, limit_daily = 0}\n'
        agents = [f'[agents.{name}]\ncommand = ["{PROGRAM}", "{name}"]\n' for name in names]
        defaults = f'[defaults]\nrun_as = "{USER}"\nharness = "command"\n{restart}'
        write("/etc/forge-supervisor/config.toml", defaults + "".join(agents))

    def start_all(self) -> list[str]:
        return ["forgectl", "start", "--all"]

    def stop_all(self) -> list[str]:
        return ["forgectl", "stop", "--all"]

    def status(self) -> list[str]:
        return ["forgectl", "status"]

    def beside(self) -> list[int]:
        worker, tmux = main_pid(f"forge-worker-{USER}.service"), main_pid(f"forge-tmux-{USER}.service")
        # Of tmux's children the programs are no part of it; what reads a pane's pipe is.
        pipes = [pid for server in tmux for pid in children(server) if _comm(pid) != Path(PROGRAM).name]
        return [*worker, *tmux, *pipes]


class Systemd(Peer):
    """Its daemon is PID 1, so nothing but the services is to be started."""

    name = "systemd"

    def prepare(self, names: list[str]) -> None:
        self._units = [f"bench@{name}.service" for name in names]
        service = f"[Service]\nUser={USER}\nExecStart={PROGRAM} %i\nRestart=always\nRestartSec=0\n"
        write("/run/systemd/system/bench@.service", f"[Unit]\nStartLimitIntervalSec=0\n{service}")
        call("systemctl", "daemon-reload")

    def start(self) -> None:
        call("systemctl", "start", "--no-block", *self._units)

    def stop(self) -> None:
        call(*self.stop_all())

    def start_all(self) -> list[str]:
        return ["systemctl", "start", *self._units]

    def stop_all(self) -> list[str]:
        return ["systemctl", "stop", *self._units]

    def status(self) -> list[str]:
        return ["systemctl", "list-units", "--no-pager", "bench@*"]

    def pids(self) -> list[int]:
        return [1]


class Supervisord(Peer):
    name = "supervisord"
    unit = "bench-supervisord.service"
    command = "/usr/bin/supervisord --nodaemon --configuration /etc/bench/supervisord.conf"

    def prepare(self, names: list[str]) -> None:
        self._service()
        head = (
            "[supervisord]\nlogfile=/run/bench/supervisord.log\npidfile=/run/bench/supervisord.pid\nminfds=4096\n"
            "[unix_http_server]\nfile=/run/bench/supervisord.sock\n"
            "[supervisorctl]\nserverurl=unix:///run/bench/supervisord.sock\n[rpcinterface:supervisor]\n"
            "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n"
        )
        # startsecs=0: whatever ends is started again at once, however short it lived.
        rest = f"user={USER}\nautorestart=true\nstartsecs=0\nstdout_logfile=NONE\nstderr_logfile=NONE\n"
        programs = [f"[program:{name}]\ncommand={PROGRAM} {name}\n{rest}" for name in names]
        write("/etc/bench/supervisord.conf", head + "".join(programs))

    def _ctl(self, *words: str) -> list[str]:
        return ["supervisorctl", "-c", "/etc/bench/supervisord.conf", *words]

    def start_all(self) -> list[str]:
        return self._ctl("start", "all")

    def stop_all(self) -> list[str]:
        return self._ctl("stop", "all")

    def status(self) -> list[str]:
        return self._ctl("status")


class Circus(Peer):
    """It looks after its programs every `check_delay` seconds, by default 5, and at no other time."""

    name = "circus"
    unit = "bench-circus.service"
    command = "/opt/circus/bin/circusd /etc/bench/circus.ini"
    kills = 8
    spread = 5.0

    def prepare(self, names: list[str]) -> None:
        self._service()
        head = (
            "[circus]\nendpoint = ipc:///run/bench/circus.endpoint\npubsub_endpoint = ipc:///run/bench/circus.pubsub\n"
            "warmup_delay = 0\n"
        )
        rest = f"uid = {USER}\nwarmup_delay = 0\nmax_retry = -1\n"
        watchers = [f"[watcher:{name}]\ncmd = {PROGRAM}\nargs = {name}\n{rest}" for name in names]
        write("/etc/bench/circus.ini", head + "".join(watchers))

    def _ctl(self, *words: str) -> list[str]:
        where = ("--endpoint", "ipc:///run/bench/circus.endpoint", "--timeout", "60")
        return ["/opt/circus/bin/circusctl", *where, *words]

    def start_all(self) -> list[str]:
        return self._ctl("start", "--waiting")

    def stop_all(self) -> list[str]:
        return self._ctl("stop", "--waiting")

    def status(self) -> list[str]:
        return self._ctl("status")


class Runit(Peer):
    """A runsv for each program; those are its supervisor, too."""

    name = "runit"
    unit = "bench-runit.service"
    command = "/usr/bin/runsvdir -P /etc/bench/runit"

    def prepare(self, names: list[str]) -> None:
        self._service()
        call("rm", "-rf", "/etc/bench/runit")
        for name in names:
            write(f"/etc/bench/runit/{name}/run", f"#!/bin/sh\nexec chpst -u {USER} {PROGRAM} {name}\n", 0o755)
        self._directories = [f"/etc/bench/runit/{name}" for name in names]

    def stop(self) -> None:
        call(*self.stop_all())
        super().stop()

    def start_all(self) -> list[str]:
        return ["sv", "start", *self._directories]

    def stop_all(self) -> list[str]:
        return ["sv", "stop", *self._directories]

    def status(self) -> list[str]:
        return ["sv", "status", *self._directories]

    def pids(self) -> list[int]:
        return [pid for main in main_pid(self.unit) for pid in (main, *children(main))]


PEERS: tuple[type[Peer], ...] = (Forge, Systemd, Supervisord, Circus, Runit)


def _comm(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()


def gone(timeout: float = 60.0) -> None:
    """Wait until no program runs any more."""
    deadline = time.monotonic() + timeout
    pgrep = ("/usr/bin/pgrep", "-x", Path(PROGRAM).name)
    while subprocess.run(pgrep, check=False, capture_output=True).returncode == 0:
        if time.monotonic() > deadline:
            raise RuntimeError("programs are left")
        time.sleep(0.05)
