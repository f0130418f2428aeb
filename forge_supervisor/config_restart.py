"""restart.* and resume.*: when an agent is started again, in the words of systemd, and what it then remembers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from forge_supervisor.config_files import Problem, Table
from forge_supervisor.config_values import Duration, ExitStatuses, Interval, Limit, Model, Statuses, Words

if TYPE_CHECKING:
    from collections.abc import Iterator

Policy = Literal["no", "always", "on-success", "on-failure", "on-abnormal", "on-abort", "on-watchdog"]
ResumePolicy = Literal["always", "after-failure", "never"]


class Restart(Model):
    """When the agent is started again.

    Names and meanings are those of systemd.service(5) and systemd.unit(5),
    but for limit_daily, which systemd has not.
    """

    policy: Policy = "on-failure"
    """After which ends the agent is started again (systemd: Restart=)."""
    delay_sec: Duration = 5.0
    """The wait before a restart (RestartSec=)."""
    limit_burst: int = Field(default=3, ge=0)
    """How many starts limit_interval_sec may hold; at one more the agent is failed (StartLimitBurst=). 0: no limit."""
    limit_interval_sec: Interval = 60.0
    """The time in which starts are counted (StartLimitIntervalSec=). 0: no limit; "infinity": for good."""
    limit_daily: int = Field(default=200, ge=0)
    """How many starts a day may hold, however far apart; at one more the agent is failed. 0: no limit."""
    steps: int = Field(default=0, ge=0)
    """In how many restarts the wait grows from delay_sec to max_delay_sec (RestartSteps=). 0: it does not grow."""
    max_delay_sec: Limit = None
    """The longest wait before a restart (RestartMaxDelaySec=); goes with steps."""
    success_exit_status: Statuses = ExitStatuses()
    """Exit codes and signals that are a clean end, beside 0, HUP, INT, TERM and PIPE (SuccessExitStatus=)."""
    prevent_exit_status: Statuses = ExitStatuses()
    """Exit codes and signals after which there is no restart, whatever the policy (RestartPreventExitStatus=)."""
    force_exit_status: Statuses = ExitStatuses()
    """Exit codes and signals after which there is a restart, whatever the policy (RestartForceExitStatus=)."""


class Resume(Model):
    """What the agent remembers of its earlier sessions when it is started again."""

    policy: ResumePolicy = "always"
    """When a start goes on with the last session: always, after one that did not end cleanly, or never."""
    prompt: Words | None = None
    """What the agent is told once it is at its prompt again, with its last session, and when a limit is over or a login
    is back (unset: nothing)."""


def restart_problems(restart: Restart, own: Table) -> Iterator[Problem]:
    """Refuse what systemd would log and ignore (service_verify(), src/core/service.c); `own`: the agent's own keys."""
    longest = restart.max_delay_sec
    if restart.steps and longest is None:
        yield Problem("restart.steps", 'has no effect without restart.max_delay_sec (such as "5min")')
    # steps = 0 in so many words is how an agent turns off what [defaults] turn on.
    if longest is not None and "steps" not in restart.model_fields_set:
        yield Problem("restart.max_delay_sec", "has no effect without restart.steps (such as 5)")
    if longest is not None and restart.steps and longest < restart.delay_sec:
        key = "delay_sec" if "delay_sec" in own else "max_delay_sec"
        text = f"restart.max_delay_sec ({longest:g} s) must be at least restart.delay_sec ({restart.delay_sec:g} s)"
        yield Problem(f"restart.{key}", text)
