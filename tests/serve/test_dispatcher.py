"""The decisions of the server by a clock of their own: order, bounds, sizes, and a queue under 0.5 to 4 x capacity."""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyres.flow import Size
from anyres.serve.costs import Costs, Line
from anyres.serve.dispatcher import Dispatcher, Refusal, Wish
from anyres.serve.options import Pace
from anyres.serve.sizing import Load, Rung, choose, ladder
from anyres.serve.waiting import Waiter, Waiting

S32, S64, S96, S128 = (Size(side, side) for side in (32, 64, 96, 128))
LINES = {S32: Line(0.5, 1.0), S64: Line(1.0, 3.0), S96: Line(1.5, 6.5), S128: Line(2.0, 11.0)}
RUNGS = (Rung(S32, 0.5), Rung(S64, 0.7), Rung(S96, 0.8), Rung(S128, 0.83))


def costs() -> Costs:
    return Costs(LINES, read_ms=1.0)


def test_a_line_never_makes_an_image_free() -> None:
    assert Line.through(10.0, 38.0, 8) == (6.0, 4.0)
    assert Line.through(10.0, 200.0, 8) == (0.0, 10.0), "a batch is not worse than its images one by one"
    assert Line.through(10.0, 10.0, 8) == (9.5, 0.5)
    assert Line.through(10.0, 10.0, 1) == (0.0, 10.0)


def test_costs_follow_what_is_measured_also_between_sizes() -> None:
    known = costs()
    assert known.batch_ms(S64, 4) == 13.0
    assert known.batch_ms(S64, 1) < known.batch_ms(Size(80, 80), 1) < known.batch_ms(S128, 1)
    assert known.batch_ms(Size(512, 512), 1) > 16 * known.batch_ms(S128, 1)
    for _ in range(60):
        known.learn(S64, 4, 26.0)
    assert known.batch_ms(S64, 4) == pytest.approx(26.0, rel=0.01)
    assert known.batch_ms(Size(64, 60), 4) == pytest.approx(known.batch_ms(S64, 4) * 60 / 64, rel=0.01)
    known.learn(S64, 4, 1e9)  # one that slept counts as a little
    assert known.batch_ms(S64, 4) < 26 * 3
    for side in range(9, 400):
        known.learn(Size(side, side + 1), 1, 5.0)
    assert len(known._ratios) <= 64 + len(LINES)
    for _ in range(100):
        known.learn_read(40.0)
    assert known.read_ms == pytest.approx(40.0, rel=0.01)


def test_a_ladder_leaves_out_what_is_larger_and_no_better() -> None:
    measured = (Rung(S32, 0.5), Rung(S96, 0.81), Rung(S64, 0.4), Rung(S128, 0.8))
    assert [rung.size for rung in ladder(measured)] == [S32, S96]
    unknown = (Rung(S128), Rung(S32, 0.5), Rung(S64))
    assert [rung.size for rung in ladder(unknown)] == [S32, S64, S128]


@settings(max_examples=60, deadline=None)
@given(left=st.none() | st.floats(0, 500), by_load=st.integers(0, 3), wait=st.floats(0, 300))
def test_the_best_size_that_is_in_time(left: float | None, by_load: int, wait: float) -> None:
    def finish(size: Size) -> float:
        return wait + size.height / 2

    size, reason = choose(RUNGS, by_load, finish, left)
    place = [rung.size for rung in RUNGS].index(size)
    in_time = [i for i, rung in enumerate(RUNGS) if left is None or finish(rung.size) <= left]
    assert place <= by_load
    if in_time:
        assert place == min(by_load, in_time[-1])
    else:
        assert place == 0
    assert (reason == "usual") == (place == 3)
    if reason == "deadline":
        assert left is not None
        assert place + 1 not in in_time
    if reason == "load":
        assert place == by_load < 3


def test_load_fades_and_does_not_alternate() -> None:
    load = Load()
    assert load.room_ms(0.0, 0.85) == math.inf
    for i in range(2000):
        load.came(i / 100)
    assert load.room_ms(20.0, 0.85) == pytest.approx(8.5, rel=0.02)
    assert load.rung([1.0, 3.0, 6.5, 11.0], 8.5) == 2
    assert load.rung([1.0, 3.0, 6.5, 11.0], 11.5) == 2, "no more than it needs: it stays"
    assert load.rung([1.0, 3.0, 6.5, 11.0], 12.7) == 3
    assert load.rung([1.0, 3.0, 6.5, 11.0], 0.2) == 0
    for i in range(2000, 4000):
        load.came(i / 100, bound_ms=5.0)
    assert load.room_ms(40.0, 0.85) > 1000, "what was free has faded"
    load.came(40.0)
    assert 200 < load.room_ms(40.0, 0.85) < 400, "bound work leaves less than half"
    load.came(39.0)  # a clock that goes back
    assert load.room_ms(40.0, 0.85) < 200


def test_a_burst_is_seen_before_a_second_is_over() -> None:
    load = Load()
    load.came(0.0)
    assert load.room_ms(0.0, 0.85) > 300, "one request is no burst"
    for i in range(40):
        load.came(10 + i / 200)
    assert 850 / 200 < load.room_ms(10.2, 0.85) < 850 / 80


Put = st.tuples(st.sampled_from(sorted(LINES)), st.floats(0, 2), st.none() | st.floats(0, 2), st.booleans())


@given(puts=st.lists(Put, max_size=60), now=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_whoever_waits_leaves_once_and_the_earliest_first(
    puts: list[tuple[Size, float, float | None, bool]], now: float
) -> None:
    known, waiting = costs(), Waiting(8)
    for number, (size, due, deadline, gone) in enumerate(puts):
        waiting.put(Waiter(size, due if deadline is None else deadline, deadline, number, gone))
    total = len(waiting)
    assert total == sum(not gone for *_, gone in puts)
    assert waiting.work_ms(known) >= waiting.work_ms(known, 1.0) >= 0
    left: list[int] = []
    while True:
        batch, late = waiting.take(now, known)
        assert all(puts[waiter.payload][2] <= now for waiter in late)
        left += [waiter.payload for waiter in (*batch, *late)]
        if not batch:
            break
        assert len({waiter.size for waiter in batch}) == 1
        assert len(batch) in (1, 2, 4, 8)
        dues = [waiter.due for waiter in batch]
        assert dues == sorted(dues)
        rest = [waiter.due for bucket in waiting._buckets.values() for *_, waiter in bucket]
        assert dues[0] <= min(rest, default=math.inf)
        first = batch[0]
        if first.deadline is not None and now + known.batch_ms(first.size, 1) / 1000 <= first.deadline:
            assert now + known.batch_ms(first.size, len(batch)) / 1000 <= first.deadline
    assert sorted(left) == [number for number, (*_, gone) in enumerate(puts) if not gone]
    assert len(waiting) == 0


def test_nobody_starves_behind_deadlines() -> None:
    """A request without a deadline is due some time: later ones with deadlines do not pass it for ever."""
    desk = Dispatcher(RUNGS, costs(), Pace(batch=1))
    desk.put(S128, 0.0, Wish(), "patient")
    when, order = 0.0, []
    for i in range(100):
        desk.put(S64, when, Wish(deadline_ms=200.0), i)
        batch, _ = desk.take(when)
        order.append(batch[0].payload)
        when += 0.01
        desk.done(when, batch)
    assert 0 < order.index("patient") <= 40


def test_a_full_queue_refuses_and_says_when_to_come_again() -> None:
    desk, taken, refused = Dispatcher(RUNGS, costs(), Pace(queue_ms=200.0)), 0, 0
    for _ in range(500):
        keys = desk.admit(0.0, Wish(size=S128))
        if isinstance(keys, Refusal):
            refused += 1
            assert keys.retry_ms > 0
            continue
        taken += 1
        chosen = desk.choose(0.0, keys[0], 0.0, Wish(size=S128))
        assert chosen == (S128, "asked")
        desk.put(chosen.size, 0.0, Wish(size=S128))
    assert 200 <= desk.wait_ms(0.0) <= 200 + costs().batch_ms(S128, 8)
    assert taken < 25
    assert refused > 400
    last = desk.admit(0.0, Wish(deadline_ms=20.0))
    assert not isinstance(last, Refusal) or last.retry_ms > 0
    tight = desk.admit(0.0, Wish(deadline_ms=0.1))
    assert isinstance(tight, Refusal), "the queue's bound holds whatever the deadline"
    idle = Dispatcher(RUNGS, costs(), Pace())
    keys = idle.admit(0.0, Wish(deadline_ms=0.1))
    assert not isinstance(keys, Refusal), "no empty queue would help: it is tried at the cheapest size"
    assert idle.choose(0.0, keys[0], 0.0, Wish(deadline_ms=0.1)) == (S32, "deadline")


def test_a_cascade_begins_small_and_goes_on_while_there_is_time() -> None:
    desk, wish = Dispatcher(RUNGS, costs(), Pace(), stages=(S32, S128)), Wish(cascade=True, deadline_ms=60.0)
    keys = desk.admit(0.0, wish, images=3)
    assert not isinstance(keys, Refusal)
    assert len(set(keys)) == 3
    assert desk.choose(0.0, keys[0], 0.0, wish) == (S32, "cascade")
    assert desk.goes_on(0.010, 1, 0.0, wish)
    assert not desk.goes_on(0.050, 1, 0.0, wish)
    assert desk.goes_on(0.050, 1, 0.0, replace(wish, deadline_ms=None))


@dataclass
class Played:
    """What became of the requests of a simulation."""

    answered: dict[int, float] = field(default_factory=dict)  # number -> seconds from arrival
    sizes: Counter[Size] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    refused: list[float] = field(default_factory=list)
    late: set[int] = field(default_factory=set)
    sent: int = 0

    def in_time(self, seconds: float) -> float:
        return sum(taken <= seconds for taken in self.answered.values()) / self.sent

    @property
    def quality(self) -> float:
        known = {rung.size: rung.quality or 0.0 for rung in RUNGS}
        return sum(known[size] * count for size, count in self.sizes.items()) / self.sizes.total()


def play(rate: float, wish: Wish, seconds: float = 2.0, slow: float = 1.0, seed: int = 0, engines: int = 1) -> Played:
    """Requests at random times, ``rate`` a second, through a dispatcher; batches take ``slow`` x what was measured,
    more or less. Every image takes 1 ms to be read."""
    rng, known = random.Random(seed), costs()
    desk, played, events, number = Dispatcher(RUNGS, known, Pace(), engines=engines), Played(), [], 0
    when = rng.expovariate(rate)
    while when < seconds:
        heapq.heappush(events, (when, number, "arrives", None))
        when, number = when + rng.expovariate(rate), number + 1
    played.sent, busy, arrived = number, 0, {}
    while events:
        now, who, what, more = heapq.heappop(events)
        if what == "arrives":
            arrived[who] = now
            keys = desk.admit(now, wish)
            if isinstance(keys, Refusal):
                played.refused.append(keys.retry_ms)
            else:
                heapq.heappush(events, (now + 0.001, who, "was read", keys[0]))
        elif what == "was read":
            size, reason = desk.choose(now, more, arrived[who], wish)
            played.reasons[reason] += 1
            desk.put(size, arrived[who], wish, who)
        else:
            desk.done(now, more)
            busy -= 1
            for waiter in more:
                played.answered[waiter.payload] = now - arrived[waiter.payload]
                played.sizes[waiter.size] += 1
        if busy < engines:
            batch, late = desk.take(now)
            played.late |= {waiter.payload for waiter in late}
            if batch:
                busy += 1
                line = LINES[batch[0].size]
                took = slow * rng.uniform(0.8, 1.3) * (line.fixed_ms + line.image_ms * len(batch)) / 1000
                heapq.heappush(events, (now + took, number, "was run", batch))
                number += 1
    assert len(played.answered) + len(played.late) + len(played.refused) == played.sent, "none lost, none twice"
    return played


CAPACITY = 8000 / (2 + 8 * 11)
"""Requests per second that the largest size alone can answer in full batches."""


def test_in_time_at_twice_the_capacity_by_smaller_sizes() -> None:
    wish = Wish(deadline_ms=100.0)
    calm, busy = play(0.5 * CAPACITY, wish), play(2 * CAPACITY, wish)
    assert calm.in_time(0.1) >= 0.99
    assert busy.in_time(0.1) >= 0.98
    assert busy.reasons["load"] + busy.reasons["deadline"] > busy.reasons["usual"]
    assert calm.quality > busy.quality, "accuracy is what load costs"
    fixed = play(2 * CAPACITY, replace(wish, size=S128))
    assert fixed.in_time(0.1) < 0.75, "one size cannot keep up"
    assert min(fixed.refused) > 0


def test_a_machine_that_is_slower_than_measured_is_learnt() -> None:
    assert play(2 * CAPACITY / 1.5, Wish(deadline_ms=100.0), seconds=4.0, slow=1.5).in_time(0.1) >= 0.95


def test_two_engines_carry_twice_the_load() -> None:
    busy = play(4 * CAPACITY, Wish(deadline_ms=100.0), seconds=1.0, engines=2)
    assert busy.in_time(0.1) >= 0.98
    assert busy.quality > 0.65


def test_without_deadlines_load_alone_keeps_the_queue_short() -> None:
    calm, busy = play(0.3 * CAPACITY, Wish()), play(3 * CAPACITY, Wish())
    assert calm.reasons["usual"] > 0.9 * calm.sent
    assert busy.reasons["load"] > 0.8 * busy.sent
    assert not busy.refused
    assert max(busy.answered.values()) < 0.5
    flood = play(40 * CAPACITY, Wish(), seconds=0.2)
    assert len(flood.refused) > 0.1 * flood.sent
    assert flood.sizes[S32] > 0.7 * flood.sizes.total()
    assert max(flood.answered.values()) < 1.0, "who is taken is answered soon"
