"""How all agents are, as OpenMetrics has it (https://prometheus.io/docs/specs/om/open_metrics_spec/).

Names, labels and units are an interface: operators' alerts and dashboards stand on them. This is imported at the first
scrape only, as the client library takes memory, 6 MiB with its OpenSSL, that a supervisor need not have that nobody
scrapes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.openmetrics import exposition

from forge_supervisor import version
from forge_supervisor.activity import Doing
from forge_supervisor.memory import State
from forge_supervisor.policy import Result
from forge_supervisor.spend.prices import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from prometheus_client.core import Metric

    from forge_supervisor.control.interface import Agent
    from forge_supervisor.counts import Counted, Counts
    from forge_supervisor.spend.totals import Total

CONTENT_TYPE: str = exposition.CONTENT_TYPE_LATEST
WHO = ("agent", "user")


def exposed(
    agents: Sequence[Agent], counts: Counts, used: Callable[[tuple[str, str]], Total | None] = lambda _: None
) -> bytes:
    """Write down how these agents are, and what they have `used`. What was counted of others is forgotten."""
    counts.keep({_who(agent) for agent in agents})
    generate_latest: Callable[[Any], bytes] = exposition.generate_latest
    return generate_latest(_Collector(agents, counts, used))


class _Collector:
    """What the library takes for a registry: one scrape's worth of metrics."""

    def __init__(
        self, agents: Sequence[Agent], counts: Counts, used: Callable[[tuple[str, str]], Total | None]
    ) -> None:
        self._agents = agents
        self._counts = counts
        self._used = used

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("forge_up", "Whether the supervisor runs.", value=1)
        yield InfoMetricFamily("forge", "The supervisor.", value={"version": version()})
        yield self._states()
        yield self._activities()
        yield from self._now()
        yield from self._counted()
        yield from self._spent()

    def _activities(self) -> Metric:
        text = "Whether that is what the agent is doing; of one that does not tell, and one that does not run, nothing."
        family = GaugeMetricFamily("forge_agent_activity", text, labels=(*WHO, "activity"))
        for agent in self._agents:
            for doing in Doing if agent.activity is not None else ():
                family.add_metric((*_who(agent), doing), agent.activity == doing)
        return family

    def _states(self) -> Metric:
        text = "Whether the agent is in that state."
        family = GaugeMetricFamily("forge_agent_state", text, labels=(*WHO, "state"))
        for agent in self._agents:
            for state in State:
                family.add_metric((*_who(agent), state), agent.state == state)
        return family

    def _now(self) -> Iterator[Metric]:
        yield self._gauge("up", "Whether the agent runs.", lambda agent: agent.state == State.RUNNING)
        yield self._gauge(
            "enabled", "Whether the agent is declared to be started with the supervisor.", lambda agent: agent.enabled
        )
        yield self._gauge(
            "memory_bytes",
            "What the agent's scope uses, with all that the agent has started.",
            lambda agent: agent.memory,
            unit="bytes",
        )
        yield self._gauge(
            "started_timestamp_seconds", "When the session that runs was started.", _started, unit="seconds"
        )
        yield self._gauge(
            "last_exit_code", "With which the last session ended, unless by a signal.", lambda agent: agent.exit_code
        )

    def _gauge(self, name: str, text: str, value: Callable[[Agent], float | None], unit: str = "") -> Metric:
        """Make a gauge of what is known; agents of which it is not have none."""
        family = GaugeMetricFamily(f"forge_agent_{name}", text, labels=WHO, unit=unit)
        for agent in self._agents:
            if (known := value(agent)) is not None:
                family.add_metric(_who(agent), known)
        return family

    def _counted(self) -> Iterator[Metric]:
        yield self._counter("starts", "Sessions that were started.", lambda counted: counted.starts)
        yield self._counter(
            "start_failures", "Starts in which nothing ran.", lambda counted: counted.start_failures
        )
        yield self._counter("restarts", "Automatic restarts.", lambda counted: counted.restarts)
        yield self._counter(
            "start_limit_hits", "Failures by a limit of starts.", lambda counted: counted.start_limit_hits
        )
        exits = CounterMetricFamily("forge_agent_exits", "Sessions that ended.", labels=(*WHO, "result"))
        for who, counted in self._by_agent():
            for result in Result:
                exits.add_metric((*who, result), counted.exits[result])
        yield exits

    def _counter(self, name: str, text: str, value: Callable[[Counted], int]) -> Metric:
        family = CounterMetricFamily(f"forge_agent_{name}", text, labels=WHO)
        for who, counted in self._by_agent():
            family.add_metric(who, value(counted))
        return family

    def _spent(self) -> Iterator[Metric]:
        """Tell what was used since the history began; of agents of which nothing is known, nothing."""
        tokens = CounterMetricFamily("forge_agent_tokens", "Tokens used.", labels=(*WHO, "kind"))
        text = "Price of the tokens used, as far as it is known."
        cost = CounterMetricFamily("forge_agent_cost_usd", text, labels=WHO)
        text = "Tokens used whose price is not known."
        unpriced = CounterMetricFamily("forge_agent_unpriced_tokens", text, labels=WHO)
        for agent in self._agents:
            if (total := self._used(_who(agent))) is not None:
                for kind in KINDS:
                    tokens.add_metric((*_who(agent), kind), getattr(total.tokens, kind))
                cost.add_metric(_who(agent), total.cost_usd)
                unpriced.add_metric(_who(agent), total.unpriced)
        yield from (tokens, cost, unpriced)

    def _by_agent(self) -> Iterable[tuple[tuple[str, str], Counted]]:
        return ((_who(agent), self._counts.of(_who(agent))) for agent in self._agents)


def _who(agent: Agent) -> tuple[str, str]:
    return agent.name, agent.run_as


def _started(agent: Agent) -> float | None:
    # The moment is reckoned anew each time, from two clocks: finer digits would be a change where there is none.
    return None if agent.started_usec is None else round(agent.started_usec / 1_000_000, 1)
