"""A real program under the whole supervisor, for a user who never ran it, in a network that is only a loopback."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar, TypeVar

import tomlkit

from forge_supervisor.control import NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

PATIENCE_SEC = 30.0
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PROGRAMS = ("ip", "nsenter", "tmux", "unshare", "useradd", "userdel")
MCP_SERVER = Path(__file__).with_name("mcp_server.py")
RESTART_DELAY_SEC = 0.2
# $1: the network's only server. An empty /run has no systemd in it to put the agents into another network.
BEGIN = 'ip link set lo up && mount -t tmpfs -o mode=755 tmpfs /run && exec "$@"'

Json = dict[str, Any]
T = TypeVar("T")


def missing(variable: str) -> str | None:
    """Why the program that the variable names cannot be tried here, or None."""
    program = os.environ.get(variable)
    if not program:
        return f"{variable} is not set: ./dev test installs the program and sets it"
    if not os.access(program, os.X_OK):
        return f"{variable}={program} is not an executable file"
    if os.geteuid() != 0:
        return "needs root, for a network with nothing but loopback and a user without a past"
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if absent:
        return f"{', '.join(absent)} not found"
    tried = subprocess.run(["unshare", "--net", "--mount", "true"], check=False, capture_output=True, text=True)
    return tried.stderr.strip() or None


class Lab:
    """A Linux user with an empty home, a stand-in for the API, and a supervisor once `start` is called."""

    harness: ClassVar[str]
    variable: ClassVar[str]
    """That names the program, in the environment of the tests."""
    api: ClassVar[Path]
    """The stand-in."""
    place: ClassVar[str | None] = None
    """Where the directory is to be made."""

    def __init__(self, directory: Path) -> None:
        self.program = os.environ[self.variable]
        self.home = directory / "home"
        self.lasting = directory / "lasting"
        self.user = f"forge-{secrets.token_hex(4)}"
        self._directory = directory
        self.requests_in = directory / "requests"
        self._config = directory / "config/config.toml"
        self._mcp_script = directory / "mcp_server.py"
        self._events: list[Json] = []
        self._heard = threading.Condition()
        self._api: subprocess.Popen[bytes] | None = None
        self._port = ""
        self._daemon: subprocess.Popen[str] | None = None
        self._listener: threading.Thread | None = None
        self._monitor: threading.Thread | None = None
        self._agents: list[Json] = []
        """How agents were, one after another."""
        self._seen: dict[str, int] = {}
        """Up to where a test has followed an agent in that."""

    @property
    def uid(self) -> int:
        return pwd.getpwnam(self.user).pw_uid

    def begin(self) -> None:
        self._directory.chmod(0o755)
        self.requests_in.mkdir()
        shutil.copy(MCP_SERVER, self._mcp_script)
        self._mcp_script.chmod(0o644)
        useradd = ["useradd", "--no-create-home", "--home-dir", str(self.home), "--shell", "/bin/sh", self.user]
        subprocess.run(useradd, check=True, env={"PATH": PATH})
        self.home.mkdir(mode=0o755)
        os.chown(self.home, self.uid, self.uid)
        port_file = self._directory / "port"
        # Not -I: it has a module beside it.
        server = [sys.executable, "-E", "-s", str(self.api), str(port_file), str(self.requests_in)]
        self._api = subprocess.Popen(["unshare", "--net", "--mount", "sh", "-c", BEGIN, "sh", *server])
        wait_for(port_file.exists, "the stand-in for the API does not start")
        self._port = port_file.read_text()

    def start(
        self, agents: Mapping[str, Json], library: Mapping[str, Json] | None = None, *, patience: float = PATIENCE_SEC
    ) -> None:
        """Start the supervisor on these agents. Each gets an API key that has never been seen, unless it has env."""
        self.configure(agents, library)
        self._run(patience)

    def kill_and_replace(self) -> None:
        """Have another supervisor in the place of one that is killed."""
        assert self._daemon is not None
        self._daemon.kill()
        self._daemon.wait()
        self._join()
        self._agents.clear()
        self._seen.clear()
        self._run(PATIENCE_SEC)

    def _run(self, patience: float) -> None:
        self._daemon = subprocess.Popen(
            [*self._supervisor(), "--log-format", "json", "--config", str(self._config)],
            stderr=subprocess.PIPE,
            text=True,
            env={"PATH": PATH, "LEAK": "a variable of the supervisor's", "STATE_DIRECTORY": str(self.lasting)},
        )
        self._listener = threading.Thread(target=self._listen, args=[self._daemon.stderr])
        self._listener.start()
        connection = socket.socket(socket.AF_UNIX)
        wait_for(lambda: connects(connection, self._control()), "the supervisor does not listen", patience)
        self._monitor = threading.Thread(target=self._watch, args=[connection])
        self._monitor.start()

    def configure(self, agents: Mapping[str, Json], library: Mapping[str, Json] | None = None) -> None:
        """Write the configuration, which `start` or `reload` reads; library has top-level tables."""
        self._config.parent.mkdir(exist_ok=True)
        self._config.write_text(tomlkit.dumps(self._configuration(agents, library or {})))

    def reload(self) -> None:
        assert self._daemon is not None
        self._daemon.send_signal(signal.SIGHUP)

    def command(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run forge-supervisor as root, on the same configuration."""
        return subprocess.run(
            [*self._supervisor(), "--config", str(self._config), *arguments],
            env={"PATH": PATH}, check=False, capture_output=True, text=True, timeout=PATIENCE_SEC, input=stdin,
        )  # fmt: skip

    def forgectl(self, *arguments: str) -> str:
        """Run forgectl as root, on the supervisor that runs."""
        done = self._forgectl(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self, *arguments: str) -> str:
        """Return what forgectl says as it refuses that."""
        refused = self._forgectl(*arguments)
        assert (refused.returncode, refused.stdout) == (1, "")
        return refused.stderr

    def _forgectl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [*self._enter(), str(Path(sys.executable).with_name("forgectl")), *arguments]
        return subprocess.run(argv, env={"PATH": PATH}, check=False, capture_output=True, text=True, timeout=60)

    def doing(self, agent: str, *activities: str) -> Json:
        """Wait until it is told that the agent does these things, in that order; return how it was at the last."""
        with self._heard:
            for activity in activities:

                def found(activity: str = activity) -> int | None:
                    begin = self._seen.get(agent, 0)
                    told = enumerate(self._agents[begin:], begin)
                    return next((n for n, one in told if (one["name"], one["activity"]) == (agent, activity)), None)

                self._heard.wait_for(lambda found=found: found() is not None, PATIENCE_SEC)  # type: ignore[misc]
                number = found()
                assert number is not None, f"it is not {activity}\n{self.story(agent)}"
                self._seen[agent] = number
            return self._agents[self._seen[agent]]

    def show(self, agent: str) -> Json:
        """Tell how the agent is now."""
        return next(one for one in self.told() if one["name"] == agent)

    def told(self) -> list[Json]:
        """Tell how all agents are now."""
        agents: list[Json] = json.loads(self.forgectl("status", "--json"))
        return agents

    @contextlib.contextmanager
    def api_fails(self, failure: Json) -> Iterator[None]:
        """Have every request to the API end as that says: the stand-in's own words."""
        file = self.requests_in / "failure"
        file.with_suffix(".new").write_text(json.dumps(failure))
        file.with_suffix(".new").rename(file)
        yield
        file.unlink()

    def give(self, path: Path, text: str, *, mode: str = "600") -> Path:
        """Put a file into the user's home, as the user would."""
        script = 'umask 077; mkdir -p "$(dirname "$1")" && cat >"$1" && chmod "$2" "$1"'
        self.as_user("sh", "-c", script, "sh", str(path), mode, stdin=text)
        return path

    def state_of(self, agent: str) -> Path:
        return self.home / ".local/state/forge/agents" / agent

    def mcp_server(self, tag: str, *kind: str, **keys: Any) -> Json:
        """Return a stand-in MCP server (mcp_server.py), which leaves a note of each of its starts for `spawned`."""
        args = [str(self._mcp_script), str(self.home / "spawned"), tag, *kind]
        return {"command": "/usr/bin/python3", "args": args, **keys}

    def spawned(self) -> dict[str, Json]:
        """Return the environment of every stand-in MCP server that was started, by its tag."""
        return {path.stem: json_of(path) for path in (self.home / "spawned").glob("*.json")}

    def stop(self) -> int:
        """Stop the supervisor and with it all agents; return its exit code."""
        assert self._daemon is not None
        self._daemon.terminate()
        return self._daemon.wait(PATIENCE_SEC)

    def end(self) -> None:
        for process in (self._daemon, self._api):
            if process is not None:
                process.kill()
                process.wait()
        self._join()
        with contextlib.suppress(KeyError):
            uid = self.uid
            wait_for(lambda: not kill_all_of(uid), f"processes of uid {uid} do not end")
            # Sockets of tmux and of the program.
            for left in [path for path in Path("/tmp").iterdir() if path.lstat().st_uid == uid]:
                shutil.rmtree(left)
            subprocess.run(["userdel", "--force", self.user], check=True, capture_output=True, env={"PATH": PATH})

    def _join(self) -> None:
        for thread in (self._listener, self._monitor):
            if thread is not None:
                thread.join()

    def variables(self, **more: str) -> dict[str, str]:
        """Return what an agent's env must have to find the stand-in."""
        raise NotImplementedError

    def keyed(self, agent: str) -> dict[str, str]:
        """Return what an agent's env must have to use a key of its own."""
        raise NotImplementedError

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def event(self, name: str, agent: str, number: int = 1, *, patience: float = PATIENCE_SEC) -> Json:
        """Wait for the agent's number-th event of that name."""

        def found() -> list[Json]:
            return [event for event in self._events if (event["event"], event.get("agent")) == (name, agent)]

        with self._heard:
            assert self._heard.wait_for(lambda: len(found()) >= number, patience), self.story(agent)
            return found()[number - 1]

    def events(self) -> list[Json]:
        with self._heard:
            return list(self._events)

    def say(self, agent: str, text: str) -> None:
        """Type as somebody at the agent's terminal does, and press Enter."""
        self.tmux("load-buffer", "-b", "words", "-", stdin=text)
        self.tmux("paste-buffer", "-p", "-d", "-b", "words", "-t", f"=agent-{agent}:")
        self.tmux("send-keys", "-t", f"=agent-{agent}:", "Enter")

    def see(self, agent: str, text: str, *, patience: float = PATIENCE_SEC) -> None:
        wait_for(lambda: text in self.screen(agent), lambda: self.story(agent), patience)

    def screen(self, agent: str) -> str:
        return self.tmux("capture-pane", "-p", "-S", "-", "-t", f"=agent-{agent}:")

    def request(self, text: str) -> Json:
        """Wait for the first request in which a user said that."""

        def found() -> Json | None:
            return next((request for request in self.requests() if text in self.said(request)), None)

        return wait_for(found, lambda: f"{text!r} in none of the requests: {[*map(self.said, self.requests())]}")

    def said(self, request: Json) -> str:
        """Return all that reached the program as the user's words."""
        raise NotImplementedError

    def requests(self) -> list[Json]:
        return [json_of(path) for path in sorted(self.requests_in.glob("*.json"))]

    def handed_out(self) -> list[Json]:
        """Return what each answer has used that was given to its end, as the stand-in for the API has it."""
        return [json_of(path) for path in sorted(self.requests_in.glob("*.usage"))]

    def as_user(self, *argv: str, stdin: str | None = None) -> str:
        """Run a program as the user, in the network of the stand-in, with next to no environment."""
        assert self._api is not None
        become = ["setpriv", "--reuid", self.user, "--regid", self.user, "--clear-groups", "--"]
        return subprocess.run(
            ["nsenter", "--target", str(self._api.pid), "--net", "--mount", "--", *become, *argv],
            env={"HOME": str(self.home), "PATH": PATH, "LC_ALL": "C.UTF-8"},
            cwd=self.home, check=True, capture_output=True, text=True, timeout=PATIENCE_SEC, input=stdin,
        ).stdout  # fmt: skip

    def tmux(self, *args: str, stdin: str | None = None) -> str:
        return self.as_user("tmux", "-u", "-N", "-L", "forge", *args, stdin=stdin)

    def _configuration(self, agents: Mapping[str, Json], library: Mapping[str, Json]) -> Json:
        made = {}
        for name, agent in agents.items():
            made[name] = {"role": "Wait.", "env": self.keyed(name), **agent}
        return {
            "defaults": {"run_as": self.user, "harness": self.harness, "restart": {"delay_sec": RESTART_DELAY_SEC}},
            "harnesses": {self.harness: {"binary": self.program}},
            **library,
            "agents": made,
        }

    def _control(self) -> str:
        assert self._api is not None
        return f"/proc/{self._api.pid}/root/run/forge-supervisor/{NAME}"

    def _watch(self, connection: socket.socket) -> None:
        """Take note of how agents are, as they change."""
        connection.sendall(json.dumps({"method": f"{NAME}.Monitor", "more": True}).encode() + b"\0")
        with connection, contextlib.suppress(ConnectionError):
            rest = b""
            while chunk := connection.recv(65536):
                *messages, rest = (rest + chunk).split(b"\0")
                agents = [json.loads(message).get("parameters", {}).get("agent") for message in messages]
                with self._heard:
                    self._agents += filter(None, agents)
                    self._heard.notify_all()

    def _supervisor(self) -> list[str]:
        return [*self._enter(), str(Path(sys.executable).with_name("forge-supervisor"))]

    def _enter(self) -> list[str]:
        assert self._api is not None
        return ["nsenter", "--target", str(self._api.pid), "--net", "--mount", "--"]

    def _listen(self, log: IO[str]) -> None:
        with log:
            for line in log:
                with self._heard:
                    self._events.append(json.loads(line) if line.startswith("{") else {"event": "", "text": line})
                    self._heard.notify_all()

    def story(self, agent: str) -> str:
        try:
            screen = self.screen(agent)
        except subprocess.CalledProcessError as error:
            screen = error.stderr
        return "\n".join([*(json.dumps(event) for event in self._events), screen.strip()])


def json_of(path: Path) -> Json:
    try:
        content: Json = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):  # not yet, or not yet all of it
        return {}
    return content


def connects(connection: socket.socket, path: str) -> bool:
    with contextlib.suppress(OSError):
        connection.connect(path)
        return True
    return False


def wait_for(
    condition: Callable[[], T | None], what: str | Callable[[], str], patience: float = PATIENCE_SEC
) -> T:
    """For what tells nobody that it has happened."""
    deadline = time.monotonic() + patience
    while not (result := condition()):
        assert time.monotonic() < deadline, what if isinstance(what, str) else what()
        time.sleep(0.02)
    return result


def kill_all_of(uid: int) -> list[int]:
    """Kill all processes of a user of this machine, and return which there were."""
    ours = Path("/proc/self/ns/pid").readlink()
    killed = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            alive = "\nState:\tZ" not in (entry / "status").read_text()
            # A machine that was booted in here may have another user of that number.
            if entry.stat().st_uid == uid and alive and (entry / "ns/pid").readlink() == ours:
                os.kill(int(entry.name), signal.SIGKILL)
                killed.append(int(entry.name))
    return killed


LabT = TypeVar("LabT", bound=Lab)


@contextlib.contextmanager
def lab_of(kind: type[LabT]) -> Iterator[LabT]:
    # Not pytest's tmp_path, which is closed to other users.
    with tempfile.TemporaryDirectory(prefix=f"forge-{kind.harness}-", dir=kind.place) as directory:
        made = kind(Path(directory))
        try:
            made.begin()
            yield made
        finally:
            made.end()


def command_lines() -> list[bytes]:
    """Return those of all processes."""
    lines = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            lines.append((process / "cmdline").read_bytes())
    return lines


def contents(directory: Path) -> list[bytes]:
    """Return those of all files below a directory."""
    return [path.read_bytes() for path in directory.rglob("*") if path.is_file()]
