"""Calls what is a stranger's, for so long and no longer, and makes a sentence of whatever comes of it but an answer.

A call runs in a thread of its own. One that does not come back is told to end, which a loop of Python heeds and a wait
in the kernel does not. What holds the interpreter's lock in C code cannot be bounded: of the supervisor it is its
watchdog that ends it, of a worker that it does not answer.
"""

from __future__ import annotations

import contextlib
import subprocess
import sysconfig
import threading
import time
import traceback
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")

PURE_SEC = 2.0
"""For a method that is pure: the supervisor stands still meanwhile."""
WORK_SEC = 8.0
"""For any other, of which those of one start have to fit into `worker.messages.Prepare.timeout`."""
SECONDS: Mapping[str, float] = {
    **dict.fromkeys(("check", "secrets", "unresumable", "reported", "unsendable"), PURE_SEC),
    # harness.said_to gives a program 10.
    "version": 11.0,
    # All that is read for one answer, `worker.messages.ReadUsage`.
    "usage_in": 30.0,
}
ONCE = frozenset({"check", "secrets", "unresumable", "reported", "unsendable", "load"})
"""Methods that are not called again in a process in which one did not return: each time would cost others, and what was
imported stays as it is."""
MOST_HANGING = 8
"""Calls of one harness that do not end, beyond which there are no more."""

SLOW_SEC = 0.1
"""What takes longer is counted: all such calls of a method of `ONCE` may take twice its time in `SLOW_WINDOW_SEC`."""
SLOW_WINDOW_SEC = 60.0

_STDLIB = sysconfig.get_path("stdlib")
_OURS = str(Path(__file__).parents[1])
_LONGEST = 300


class BrokenHarnessError(LookupError):
    """A harness is not what the seam says; the text is a sentence that names it. To whoever needs it, there is none."""


class NonsenseError(Exception):
    """What was returned is not of the shape that the seam asks for; the text follows 'returned'."""


_given_up: set[tuple[str, str]] = set()
_hanging: defaultdict[str, list[threading.Thread]] = defaultdict(list)
_slow: defaultdict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
"""When a slow call ended, and how long it took."""


def bounded(harness: str, method: str, work: Callable[[], T]) -> T:
    """Do `work`, which is all that is done of a method of a harness, and return what it does.

    Raises BrokenHarnessError; LookupError (no subclass of it) from plan(), OSError and SubprocessError from version().
    """
    named = f'the harness "{harness}"'
    if (harness, method) in _given_up:
        what = "be loaded" if method == "load" else f"return from {method}()"
        text = f"{named} did not {what} in time before, and is asked no more (mend it, then restart the supervisor)"
        raise BrokenHarnessError(text)
    _hanging[harness] = left = [call for call in _hanging[harness] if call.is_alive()]
    if len(left) >= MOST_HANGING:
        raise BrokenHarnessError(f"{named} is not asked, for {len(left)} calls of it have not returned yet")
    call = _Call(work, name=f"{harness}.{method}")
    seconds = SECONDS.get(method, WORK_SEC)
    if method in ONCE:
        _check_pace(named, harness, method, 2 * seconds)
    began = time.monotonic()
    call.start()
    call.join(seconds)
    if method in ONCE and (took := time.monotonic() - began) > SLOW_SEC:
        _slow[harness, method].append((began + took, took))
    if call.is_alive():
        call.interrupt()
        left.append(call)
        if method in ONCE:
            _given_up.add((harness, method))
        what = "could not be loaded" if method == "load" else f"did not return from {method}()"
        raise BrokenHarnessError(f"{named} {what} within {seconds:g} s")
    return call.outcome(named, method)


def _check_pace(named: str, harness: str, method: str, most: float) -> None:
    """Refuse to have all wait for it again and again."""
    since = time.monotonic() - SLOW_WINDOW_SEC
    _slow[harness, method] = lately = [(ended, took) for ended, took in _slow[harness, method] if ended > since]
    if (taken := sum(took for _, took in lately)) > most:
        what = "to be loaded" if method == "load" else f"for {method}()"
        text = f"{named} has taken {taken:.0f} s of the last {SLOW_WINDOW_SEC:g} {what}, and is not asked for a while"
        raise BrokenHarnessError(text)


class _Call(threading.Thread, Generic[T]):
    def __init__(self, work: Callable[[], T], name: str) -> None:
        # Not to be waited for when the process ends.
        super().__init__(name=name, daemon=True)
        self._work = work
        self._values: list[T] = []
        self._error: BaseException | None = None
        self._told = ""

    def run(self) -> None:
        try:
            self._values.append(self._work())
        except BaseException as error:  # noqa: BLE001 - SystemExit too: no stranger ends this process
            self._error = error
            self._told = _told(error)

    def interrupt(self) -> None:
        """Raise SystemExit in it as soon as it is Python that it executes."""
        # What a sandbox says to a foreign function interface is not known beforehand; without it, the call goes on.
        with contextlib.suppress(ImportError, MemoryError, OSError, AttributeError):
            import ctypes  # noqa: PLC0415 - never needed, but once in a while

            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.ident or 0), ctypes.py_object(SystemExit))

    def outcome(self, named: str, method: str) -> T:
        if self._values:
            return self._values[0]
        error = self._error
        if error is not None and _is_declared(method, error):
            raise error
        if isinstance(error, NonsenseError):
            text = f"{named} cannot be used: it {error}" if method == "load" else f"{named} returned {error}"
            where = "" if method == "load" else f" from {method}()"
            raise BrokenHarnessError(text + where) from None
        what = "cannot be loaded" if method == "load" else f"failed in {method}()"
        raise BrokenHarnessError(f"{named} {what}: {self._told}") from error


def _is_declared(method: str, error: BaseException) -> bool:
    # A KeyError is a LookupError too, and no sentence.
    if method == "plan":
        return type(error) is LookupError
    return method == "version" and isinstance(error, OSError | subprocess.SubprocessError)


def _told(error: BaseException) -> str:
    kind = type(error).__name__
    try:
        said = " ".join(str(error).split())[:_LONGEST]
    except BaseException:  # noqa: BLE001 - it is a stranger's too
        said = ""
    return f"{kind}{': ' if said else ''}{said}{_where(error)}"


def _where(error: BaseException) -> str:
    """Name the line of the stranger's, not one of what it calls, that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    known = ("<", _OURS, *(() if _STDLIB is None else (_STDLIB,)))
    theirs = [frame for frame in frames if not frame.filename.startswith(known)]
    return f" ({Path(theirs[-1].filename).name}, line {theirs[-1].lineno})" if theirs else ""
