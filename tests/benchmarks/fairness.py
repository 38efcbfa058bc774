"""Is the queue as fair as the docs say? Simulated days of a scheduler, as the table in its page.

    python -m tests.benchmarks.fairness

The real Scheduler, a virtual clock, workers whose tasks take as long as their answers are, and tenants
that send at random (seeded). Nothing is measured here but waits and shares, so the figures are the same
on every machine. The unit tests run the same scenes, shorter.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from itertools import count

import msgspec

from cluster.domain import Generation, GpuInfo, Message, ModelOffer, Task, Tier, WorkerSpec
from cluster.scheduler.commands import AssignTask, FailTask
from cluster.scheduler.core import Scheduler, Settings
from cluster.scheduler.events import AttemptFinished, Event, TaskSubmitted, Tick, WorkerJoined

MODEL = "llama-3-8b"
SLOTS = 8
TOKENS_PER_S = 50.0
"""Of one sequence."""
MEAN_TOKENS = 100
SERVICE_S = MEAN_TOKENS / TOKENS_PER_S
"""How long a task takes, on average."""
RATE_PER_S = SLOTS / SERVICE_S
"""How many tasks end a second when all slots are taken."""
PATIENT = Settings(queue_timeout_s=1e6, total_timeout_s=2e6, worker_stale_s=1e9, worker_silent_s=1e9)
"""Nobody gives up, so that long waits are seen and not cut off."""


class Served(msgspec.Struct, frozen=True):
    """One task that was given to a worker."""

    tenant: str
    tier: Tier
    wait_s: float
    ahead: int
    """Tasks of lower tiers that were waiting when it came."""


class Row(msgspec.Struct, frozen=True):
    """One line of the table."""

    claim: str
    measured: float
    bound: float
    unit: str
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether the scheduler does as it says."""
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound


class Scene:
    """A scheduler, one worker, and tenants who send."""

    def __init__(self, settings: Settings = PATIENT, *, seed: int, slots: int = SLOTS) -> None:
        self.now = 0.0
        self.served: list[Served] = []
        self.tokens: dict[str, int] = defaultdict(int)
        """What each tenant has been served, in tokens of tasks that have ended."""
        self.ended = 0
        self.refused = 0
        self.scheduler = Scheduler(settings, random.Random(seed), now=0.0)
        self._random = random.Random(seed)
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count(1)
        self._sent: dict[str, tuple[float, int]] = {}
        offer = ModelOffer(id=MODEL, context_tokens=8_192, kv_bytes_per_token=1)
        worker = WorkerSpec(
            id="wrk_1",
            name="worker",
            instance="i-1",
            gpu=GpuInfo(name="H100"),
            models=(offer,),
            capacity=slots,
            kv_bytes=0,
        )
        self._tell(WorkerJoined(worker, "node-1", "lnk_1"))

    def send(self, tenant: str, tier: Tier = Tier.DEFAULT, *, tokens: int = MEAN_TOKENS) -> None:
        """Send one task now; its answer is between half and one and a half times as long as `tokens`."""
        answer = self._random.randint(tokens // 2, tokens + tokens // 2)
        task = Task(
            id=f"req_{next(self._numbers)}",
            model=MODEL,
            tenant=tenant,
            tenant_label=tenant,
            tier=tier,
            node="node-1",
            prompt_tokens=20,
            generation=Generation(messages=(Message("user", "hello"),), max_tokens=answer, seed=1),
        )
        self._sent[task.id] = (self.now, self._lower_waiting())
        self._tell(TaskSubmitted(task))

    def keep_sending(self, tenant: str, per_s: float, tier: Tier = Tier.DEFAULT) -> None:
        """Send at random, so many a second on average, from now on."""

        def again() -> None:
            self.send(tenant, tier)
            self._at(self.now + self._random.expovariate(per_s), again)

        self._at(self.now + self._random.expovariate(per_s), again)

    def run(self, until_s: float, *, ends: int | None = None) -> None:
        """Let time pass, until then or until so many tasks have ended."""
        while self._agenda and self._agenda[0][0] <= until_s and (ends is None or self.ended < ends):
            self.now, _, act = heappop(self._agenda)
            act()
        self._tell(Tick())

    def waits_s(self, tenant: str | None = None, tier: Tier | None = None) -> list[float]:
        """Return the waits of those served, by tenant or by tier, in order of size."""
        return sorted(
            one.wait_s
            for one in self.served
            if (tenant is None or one.tenant == tenant) and (tier is None or one.tier is tier)
        )

    def _lower_waiting(self) -> int:
        queue = self.scheduler.queues.get(MODEL)
        if queue is None:
            return 0
        top = next(tier for tier in Tier if queue.tiers[tier].depth)
        return sum(queue.tiers[tier].depth for tier in Tier if tier > top)

    def _tell(self, event: Event) -> None:
        for command in self.scheduler.handle(event, self.now):
            match command:
                case AssignTask():
                    self._serve(command.task)
                case FailTask():
                    self.refused += 1

    def _serve(self, task: Task) -> None:
        sent_at_s, ahead = self._sent.pop(task.id)
        self.served.append(Served(task.tenant, task.tier, self.now - sent_at_s, ahead))
        tokens = task.generation.max_tokens

        def end() -> None:
            self.ended += 1
            self.tokens[task.tenant] += task.prompt_tokens + tokens
            self._tell(AttemptFinished(task.id, 1, "wrk_1", tokens))

        self._at(self.now + tokens / TOKENS_PER_S, end)

    def _at(self, at_s: float, act: Callable[[], None]) -> None:
        heappush(self._agenda, (at_s, next(self._numbers), act))


def equal_tenants(*, seed: int = 1, completions: int = 200, large: int = MEAN_TOKENS) -> Row:
    """Ten tenants with as much to do as they like; half of them may send larger tasks than the others."""
    settings = msgspec.structs.replace(PATIENT, max_waiting=1_000_000)
    scene = Scene(settings, seed=seed)
    tenants = [f"tenant-{n}" for n in range(10)]
    for _ in range(completions):
        for n, tenant in enumerate(tenants):
            scene.send(tenant, tokens=large if n % 2 else MEAN_TOKENS)
    scene.run(1e6, ends=completions)
    shares = [scene.tokens[tenant] for tenant in tenants]
    what = "alike" if large == MEAN_TOKENS else f"one half with answers {large // MEAN_TOKENS}× as long"
    return Row(f"Jain index of ten tenants' tokens, {what}", jain(shares), 0.95, "", at_least=True)


def flood(*, seed: int = 1, seconds: float = 2_000.0) -> Row:
    """What a tenant that sends a hundred times as much does to another, who sends a little."""
    alone, flooded = Scene(seed=seed), Scene(seed=seed)
    for scene, times in ((alone, 1), (flooded, 100)):
        scene.keep_sending("bob", RATE_PER_S / 10)
        scene.keep_sending("alice", times * RATE_PER_S / 10)
        scene.run(seconds)
    added_s = percentile(flooded.waits_s("bob"), 99) - percentile(alone.waits_s("bob"), 99)
    return Row("p99 wait added to a tenant by another that sends 100×", added_s, SERVICE_S, "s")


def overload(*, seed: int = 1, seconds: float = 2_000.0) -> Row:
    """What twice as much default traffic as can be served does to the priority tier."""
    idle, busy = Scene(seed=seed), Scene(seed=seed)
    for scene, times in ((idle, 0), (busy, 2)):
        scene.keep_sending("paula", RATE_PER_S / 10, Tier.PRIORITY)
        for n in range(10 if times else 0):
            scene.keep_sending(f"tenant-{n}", times * RATE_PER_S / 10)
        scene.run(seconds)
    added_s = percentile(busy.waits_s(tier=Tier.PRIORITY), 95) - percentile(idle.waits_s(tier=Tier.PRIORITY), 95)
    return Row("p95 wait added to priority by 2× overload of default", added_s, SERVICE_S, "s")


def lowest(*, seed: int = 1, seconds: float = 2_000.0) -> Row:
    """How long batch tasks wait under 2× overload of priority, as a share of the stated bound."""
    settings = msgspec.structs.replace(PATIENT, max_waiting_share=1.0)
    scene = Scene(settings, seed=seed)
    scene.keep_sending("alice", 2 * RATE_PER_S, Tier.PRIORITY)
    scene.keep_sending("bella", RATE_PER_S / 15, Tier.BATCH)
    scene.run(seconds)
    shares = [
        one.wait_s / (settings.aged_after_s + (one.ahead + 1) * settings.aged_every / RATE_PER_S)
        for one in scene.served
        if one.tier is Tier.BATCH
    ]
    return Row("longest batch wait under 2× overload of priority, of its bound", max(shares), 1.0, "")


def jain(shares: Iterable[float]) -> float:
    """Return Jain's index of fairness: 1 when all have the same, 1/n when one has all."""
    values = list(shares)
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


def percentile(ordered: list[float], percent: float) -> float:
    """Return the value that so many percent are not above."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def main() -> None:
    """Print the table."""
    rows = [equal_tenants(), equal_tenants(large=8 * MEAN_TOKENS), flood(), overload(), lowest()]
    print("| claim | measured | bound |")
    print("|---|---|---|")
    for row in rows:
        sign, unit = "≥" if row.at_least else "≤", f" {row.unit}" if row.unit else ""
        print(f"| {row.claim} | {row.measured:.3f}{unit} | {sign} {row.bound:g}{unit} |")
    if not all(row.holds for row in rows):
        raise SystemExit("not as fair as it says")


if __name__ == "__main__":
    main()
