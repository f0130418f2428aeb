"""What people do in a Debian made a minute ago. Run by `./dev fresh`, as root, of all suites and stages or those named.

newcomer: git clone, ./dev run, ./dev test.
wheel: the wheel that ./dev has built is installed into an empty venv, where there is no checkout, and the machine tests
are run against it; those that are named after ``--``, or all.

What this machine needs to reach mirrors and registries (CA certificates, proxies, index and registry addresses) is
taken along; nothing that was downloaded or built is.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from booted import BOOT, CHECKOUT, NSPAWN, PATH, Machine, nspawn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Beyond mmdebstrap's minbase: what every server has, and git for the clone.
INCLUDE = "systemd,systemd-sysv,dbus,ca-certificates,git"
HOME = Path("root")
PIP = ("/etc/pip.conf", "~/.config/pip/pip.conf", "~/.pip/pip.conf")
PIP_KEYS = re.compile(r"(index-url|extra-index-url|proxy|trusted-host)\s*=(?!.*file:)")
NPM = ("/etc/npmrc", "~/.npmrc")
NPM_KEYS = re.compile(r"((@[^=]+:)?registry|(https-)?proxy|noproxy|//.+)\s*=")
ENVIRONMENT = re.compile(
    r"(https?|ftp|all|no)_proxy|npm_config_(registry|(https_)?proxy)|pip_((extra_)?index_url|proxy)", re.IGNORECASE
)
TIMEOUT_SEC = 2400


SUITES = ("bookworm", "trixie")
# What the tests are, beside the program; nothing of which anything can be installed.
OF_THE_TESTS = ("pyproject.toml", "README.md", "docs", "tests")
ALONE = "/srv/forge-tests"
VENV, WHEELS = "/opt/forge-tested", "/opt/wheels"
PACKAGES = (
    *("tmux", "procps", "gcc", "libc6-dev", "pkg-config", "python3-dev", "python3-venv", "libsystemd-dev"),
    *("systemd-container", "dbus-user-session", "sudo", "iproute2", "groff-base", "zsh", "fish"),
)


def main(arguments: list[str]) -> int:
    named, tests = arguments, ["tests/machine"]
    if "--" in arguments:
        where = arguments.index("--")
        named, tests = arguments[:where], arguments[where + 1 :]
    stages: dict[str, Callable[[str], bool]] = {"newcomer": newcomer, "wheel": partial(wheel, named=tests)}
    asked = [name for name in stages if name in named] or [*stages]
    suites = [name for name in named if name not in stages] or SUITES
    failed = [f"{stage} on {suite}" for suite in suites for stage in asked if not stages[stage](suite)]
    say(f"failed: {', '.join(failed)}" if failed else "all is well")
    return 1 if failed else 0


def say(text: str) -> None:
    sys.stdout.write(f"fresh: {text}\n")
    sys.stdout.flush()


@contextlib.contextmanager
def debian(suite: str, *, clone: bool) -> Iterator[tuple[Machine, Path]]:
    """Boot a fresh `suite`, with a repository to clone if asked for; its root directory, too."""
    with tempfile.TemporaryDirectory(prefix="forge-fresh-", dir="/var/tmp") as name:  # root's own disk: it takes 2 GB
        directory = Path(name)
        directory.chmod(0o755)
        root = directory / suite
        began = time.monotonic()
        make(suite, root, clone=clone)
        say(f"{suite}: made in {time.monotonic() - began:.0f} s")
        # CAP_NET_ADMIN is for tests that make network namespaces.
        options = ("--capability=CAP_NET_ADMIN", "--resolv-conf=replace-host")
        with nspawn(root, BOOT + NSPAWN, options, files=directory) as machine:
            yield machine, root


def newcomer(suite: str) -> bool:
    """Whether both commands did what they should in a fresh `suite`."""
    with debian(suite, clone=True) as (machine, _):
        say(f"{suite}: booted; git clone")
        machine.run("git", "clone", "-q", "/srv/forge-supervisor.git", "/root/forge-supervisor")
        passed = demonstration(machine, suite) & tests(machine, suite)
        versions = machine.run("sh", "-c", "systemctl --version | head -n 1; tmux -V; python3 -V").stdout
        say(f"{suite}: {'passed' if passed else 'FAILED'} with {', '.join(versions.splitlines())}")
    return passed


def wheel(suite: str, named: list[str]) -> bool:
    """Whether these tests pass against the wheel, in a fresh `suite` without a checkout."""
    (built,) = Path(os.environ["FORGE_TEST_WHEELS"]).glob("forge_supervisor-*.whl")
    with debian(suite, clone=False) as (machine, root):
        shutil.copy(built, root / "srv")
        (root / ALONE[1:]).mkdir()
        for name in OF_THE_TESTS:
            copy = shutil.copytree if (CHECKOUT / name).is_dir() else shutil.copy
            copy(CHECKOUT / name, root / ALONE[1:] / name)
        say(f"{suite}: booted; {built.name} into an empty venv")
        pip = f"{VENV}/bin/pip"
        steps = (
            f"apt-get update -qq && apt-get install -y -qq --no-install-recommends {' '.join(PACKAGES)} >/dev/null",
            f"python3 -m venv {VENV}",
            f"{pip} wheel -q --use-pep517 -w {WHEELS} setuptools wheel '/srv/{built.name}[dev]'",
            f"{pip} install -q --no-index --find-links {WHEELS} setuptools wheel 'forge-supervisor[dev]'",
            # The program is nowhere else.
            "test -z \"$(find / -xdev -name forge_supervisor -not -path '*/site-packages/*')\"",
            f"PYTHONSAFEPATH=1 FORGE_TEST_INSTALLED={VENV} FORGE_TEST_WHEELS={WHEELS} {VENV}/bin/pytest "
            + shlex.join(named),
        )
        for step in steps:
            began = time.monotonic()
            command = typed(machine, f"sh -c {shlex.quote(step)}", ALONE)
            code = subprocess.run(command, check=False, stdin=subprocess.DEVNULL).returncode
            say(f"{suite}: ended with {code} after {time.monotonic() - began:.0f} s: {step}")
            if code:
                return False
    return True


def make(suite: str, root: Path, *, clone: bool) -> None:
    given = sources(suite)
    from_stdin = ["-"] if given else []
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={INCLUDE}", suite, str(root), *from_stdin]
    subprocess.run(command, input=given, text=True, check=True)
    if clone:
        subprocess.run(["git", "clone", "--quiet", "--bare", CHECKOUT, root / "srv/forge-supervisor.git"], check=True)
    carry(root)


def sources(suite: str) -> str:
    """Return this machine's own Debian sources, for `suite`; nothing if it is no Debian (mmdebstrap knows a mirror)."""
    form = "deb $(REPO_URI) $(RELEASE) $(COMPONENT)"
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", form, "Created-By: Packages", "Origin: Debian"],
        check=True,
        text=True,
        capture_output=True,
    ).stdout
    here = re.compile(r"\b(bookworm|trixie)\b")
    found = sorted({here.sub(suite, line) for line in listed.splitlines() if here.search(line)})
    return "\n".join(found)


def carry(root: Path) -> None:
    """Give the machine in `root` what this one needs to reach mirrors and registries."""
    proxies = subprocess.run(["apt-config", "dump"], check=True, text=True, capture_output=True).stdout
    for_apt = [f"{line}\n" for line in proxies.splitlines() if re.match(r"Acquire::\S*proxy", line, re.IGNORECASE)]
    (root / "etc/apt/apt.conf.d/90carried").write_text("".join(for_apt))
    for certificate in Path("/usr/local/share/ca-certificates").glob("*.crt"):
        shutil.copy(certificate, root / "usr/local/share/ca-certificates")
    subprocess.run(["chroot", root, "update-ca-certificates"], check=True, capture_output=True)
    (root / HOME / ".config/pip").mkdir(parents=True)
    (root / HOME / ".config/pip/pip.conf").write_text("[global]\n" + chosen(PIP, PIP_KEYS))
    (root / HOME / ".npmrc").write_text(chosen(NPM, NPM_KEYS))
    variables = [f'{key}="{value}"\n' for key, value in os.environ.items() if ENVIRONMENT.fullmatch(key)]
    (root / HOME / "carried.env").write_text("".join(variables))


def chosen(files: tuple[str, ...], keys: re.Pattern[str]) -> str:
    """Return the lines of `files` that `keys` matches."""
    texts = [path.read_text() for path in (Path(file).expanduser() for file in files) if path.exists()]
    return "".join(f"{line}\n" for line in "\n".join(texts).splitlines() if keys.match(line))


def typed(machine: Machine, command: str, directory: str = "/root/forge-supervisor") -> list[str]:
    """Return the argv that runs `command` in that directory (the clone), as root, in a unit of the machine."""
    properties = (f"WorkingDirectory={directory}", "EnvironmentFile=/root/carried.env", f"RuntimeMaxSec={TIMEOUT_SEC}")
    variables = (f"PATH={PATH}", "HOME=/root", "USER=root", "LOGNAME=root")
    return machine.command(
        *("systemd-run", "--unit=newcomer", "--pipe", "--wait", "--quiet", "--collect"),
        *(f"--property={each}" for each in properties),
        *(f"--setenv={each}" for each in variables),
        *("sh", "-c", f"exec {command}"),
    )


def tests(machine: Machine, suite: str) -> bool:
    say(f"{suite}: ./dev test")
    began = time.monotonic()
    code = subprocess.run(typed(machine, "./dev test"), check=False, stdin=subprocess.DEVNULL).returncode
    say(f"{suite}: ./dev test ended with {code} after {time.monotonic() - began:.0f} s")
    return code == 0


def demonstration(machine: Machine, suite: str) -> bool:
    """Whether ./dev run showed what it should: one agent that runs on, one that is failed after its third start."""
    say(f"{suite}: ./dev run")
    began = time.monotonic()
    starts = failed_after = 0
    runs_on = False
    with subprocess.Popen(
        typed(machine, "./dev run"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(f"{time.monotonic() - began:6.1f} {line}")
            starts += "crasher started" in line
            if "crasher failed" in line:
                failed_after = starts
                runs_on = "while sleep 1" in " ".join(machine.processes("forge-demo").values())
                machine.run("systemctl", "kill", "--signal=SIGINT", "--kill-whom=main", "newcomer")
    left = machine.processes("forge-demo") if starts else {}
    say(
        f"{suite}: ./dev run ended with {process.returncode} after {time.monotonic() - began:.0f} s; "
        f"crasher failed after {failed_after} starts, clock {'ran' if runs_on else 'did not run'} then; "
        f"left of them: {left or 'nothing'}"
    )
    return process.returncode == 0 and failed_after == 3 and runs_on and not left


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
