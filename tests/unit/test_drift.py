"""Drift compensation: the bound is true in every simulation, and how good the guess is."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.drift import (
    Discipline,
    Estimate,
    Kind,
    Sample,
    State,
    Tuning,
    Verdict,
    _Window,
    exchanged,
    slewed,
)

US = 1_000
MS = 1_000_000
S = 1_000_000_000
MINUTE, HOUR, DAY = 60 * S, 3600 * S, 86_400 * S
POLL_NS = 16 * S

Delay = Callable[[random.Random], int]


class Truth:
    """The true offset: a line of pieces, each with a rate, and steps of the reference."""

    def __init__(self, rate_ppb: int = 0, offset_ns: int = 0) -> None:
        self.starts_ns = [0]
        self.offsets = [offset_ns * S]  # in 1e-9 ns, exact
        self.rates_ppb = [rate_ppb]

    def turn(self, at_ns: int, rate_ppb: int, step_ns: int = 0) -> Truth:
        """From then on another rate, or another offset."""
        here = self.offsets[-1] + (at_ns - self.starts_ns[-1]) * self.rates_ppb[-1]
        self.starts_ns.append(at_ns)
        self.offsets.append(here + step_ns * S)
        self.rates_ppb.append(rate_ppb)
        return self

    def at(self, ns: int) -> int:
        i = max(bisect_right(self.starts_ns, ns) - 1, 0)
        return (self.offsets[i] + (ns - self.starts_ns[i]) * self.rates_ppb[i]) // S


class Seen(NamedTuple):
    """One poll: what became of it, and how the estimate stood just before the next."""

    at_ns: int
    verdict: Verdict
    miss_ns: int
    estimate: Estimate


def lan(rng: random.Random) -> int:
    """A good network: 100 us and queues."""
    return 100 * US + int(rng.expovariate(1 / (30 * US)))


def heavy(rng: random.Random) -> int:
    """Delays whose mean is beyond the median, up to seconds."""
    return 200 * US + min(int(rng.paretovariate(0.9) * 100 * US), 3 * S)


def exchange(truth: Truth, at_ns: int, out_ns: int, back_ns: int, work_ns: int = 20_000) -> Sample:
    arrived_ns = at_ns + out_ns
    left_ns = arrived_ns + work_ns
    return exchanged(
        at_ns,
        arrived_ns + truth.at(arrived_ns),
        left_ns + truth.at(left_ns),
        left_ns + back_ns,
    )


def true_at(discipline: Discipline, truth: Truth, now_ns: int) -> tuple[int, Estimate]:
    """How far the guess is from the truth, once that is known to be within the bound."""
    estimate = discipline.at(now_ns)
    miss_ns = abs(estimate.offset_ns - truth.at(now_ns))
    assert estimate.error_ns is not None
    assert miss_ns <= estimate.error_ns + 1, f"at {now_ns}: {estimate}, off by {miss_ns}"
    return miss_ns, estimate


def follow(
    discipline: Discipline,
    truth: Truth,
    *,
    until_ns: int,
    out: Delay = lan,
    back: Delay = lan,
    lost: float = 0.0,
    seed: int = 1,
    from_ns: int = POLL_NS,
    poll_ns: int = POLL_NS,
) -> Iterator[Seen]:
    """Poll until then. The bound is checked after each sample and just before the next."""
    rng = random.Random(seed)
    now_ns = from_ns
    while now_ns < until_ns:
        sample = exchange(truth, now_ns, out(rng), back(rng))
        next_ns = now_ns + 4 * S + poll_ns + rng.randrange(S)
        if rng.random() >= lost:
            verdict = discipline.feed(sample)
            true_at(discipline, truth, 2 * sample.local_ns - now_ns)
            yield Seen(now_ns, verdict, *true_at(discipline, truth, next_ns))
        now_ns = next_ns


def misses(seen: list[Seen]) -> list[int]:
    return sorted(each.miss_ns for each in seen[64:])


@pytest.mark.parametrize("rate_ppb", [-50_000, 0, 50_000])
def test_a_steady_oscillator_is_known_to_microseconds(rate_ppb: int) -> None:
    discipline = Discipline()
    seen = list(follow(discipline, Truth(rate_ppb, 7 * S), until_ns=3 * HOUR))
    off_ns = misses(seen)
    assert off_ns[len(off_ns) // 2] < 15 * US
    assert off_ns[-1] < 80 * US
    errors_ns = [each.estimate.error_ns for each in seen[64:]]
    assert max(error_ns or 0 for error_ns in errors_ns) < 700 * US
    assert abs(seen[-1].estimate.rate_ppb - rate_ppb) < 100
    assert seen[-1].estimate.samples == 64
    assert {each.verdict.kind for each in seen} <= {Kind.USED, Kind.HELD}


def test_the_bound_is_true_from_the_first_sample_on() -> None:
    discipline, truth = Discipline(), Truth(-50_000, -3 * HOUR)
    assert discipline.at(5) == Estimate(0, 0, None, 0, 0, State.UNSET)
    sample = exchange(truth, S, 100 * US, 900 * US)
    assert discipline.feed(sample) == (Kind.USED, 0)
    miss_ns, estimate = true_at(discipline, truth, sample.local_ns)
    assert 390 * US < miss_ns < 410 * US  # half of what the two ways differ by
    assert estimate.error_ns == sample.half_ns
    assert estimate.state == State.FOLLOWING
    # Nothing is known of the rate yet but what is possible at all.
    _, later = true_at(discipline, truth, sample.local_ns + 100 * S)
    assert later.error_ns == sample.half_ns + 50 * MS


@pytest.mark.parametrize("seed", range(2))
def test_wander_and_a_ramp_of_temperature_are_followed(seed: int) -> None:
    rng = random.Random(seed)
    truth = Truth(30_000)
    rate_ppb = 30_000.0
    for minute in range(1, 5 * 60):
        # 3 ppm up within two hours, then down again, and a walk besides.
        rate_ppb += 25 if minute < 120 else -12.5
        rate_ppb += rng.uniform(-20, 20)
        truth.turn(minute * MINUTE, int(rate_ppb))
    off_ns = misses(list(follow(Discipline(), truth, until_ns=5 * HOUR, seed=seed)))
    assert off_ns[len(off_ns) // 2] < 25 * US
    assert off_ns[-1] < 120 * US


@pytest.mark.parametrize("seed", range(2))
def test_heavy_tails_asymmetry_and_losses(seed: int) -> None:
    discipline = Discipline()
    seen = list(
        follow(
            discipline,
            Truth(-20_000, S),
            until_ns=4 * HOUR,
            out=heavy,
            back=lan,
            lost=0.3,
            seed=seed,
        )
    )
    kinds = [each.verdict.kind for each in seen]
    assert set(kinds) == {Kind.USED, Kind.HELD}
    off_ns = misses(seen)
    assert off_ns[len(off_ns) // 2] < 150 * US  # most of it is the asymmetry, which none can see
    assert off_ns[-1] < 500 * US
    assert abs(seen[-1].estimate.rate_ppb + 20_000) < 1_000
    assert max(each.estimate.error_ns or 0 for each in seen[64:]) < 3 * MS


def test_hold_over_for_a_day() -> None:
    discipline, truth = Discipline(), Truth(50_000)
    seen = list(follow(discipline, truth, until_ns=2 * HOUR))
    last_ns = seen[-1].at_ns
    # The room gets warmer when the network is gone: within the band, but only just.
    truth.turn(last_ns + HOUR, 60_000).turn(last_ns + 20 * HOUR, 45_500)
    errors_ns = []
    for minute in range(1, 24 * 60 + 1):
        now_ns = last_ns + minute * MINUTE
        _, estimate = true_at(discipline, truth, now_ns)
        assert estimate.state == (State.HOLDOVER if minute > 5 else State.FOLLOWING)
        assert estimate.error_ns is not None
        errors_ns.append(estimate.error_ns)
    assert all(early < late for early, late in pairwise(errors_ns))
    assert 15 * 3_600 * US < errors_ns[59] < 55 * MS  # 15 ppm of an hour
    assert 15 * 86_400 * US < errors_ns[-1] < 1_320 * MS
    # A sample ends it: it agrees, whatever the drift was.
    sample = exchange(truth, last_ns + DAY + MINUTE, 100 * US, 100 * US)
    assert discipline.feed(sample).kind is Kind.USED
    miss_ns, estimate = true_at(discipline, truth, sample.local_ns)
    assert estimate.state == State.FOLLOWING
    assert miss_ns < 200 * US
    assert (estimate.error_ns or 0) < 250 * US


def test_a_day_with_the_rate_as_it_was_is_off_by_milliseconds() -> None:
    discipline, truth = Discipline(), Truth(-41_234)
    seen = list(follow(discipline, truth, until_ns=2 * HOUR))
    miss_ns, _ = true_at(discipline, truth, seen[-1].at_ns + DAY)
    assert miss_ns < 10 * MS  # 3.6 s without compensation


@pytest.mark.parametrize("step_ns", [HOUR, -HOUR, 20 * MS, -20 * MS])
def test_a_step_of_the_reference_is_told_and_taken(step_ns: int) -> None:
    discipline, truth = Discipline(), Truth(20_000)
    before = list(follow(discipline, truth, until_ns=HOUR))
    stepped_ns = before[-1].at_ns + 10 * S
    truth.turn(stepped_ns, 20_000, step_ns)
    # From the first sample after it on the bound covers both, and `follow` asserts that it does.
    after = list(follow(discipline, truth, from_ns=stepped_ns + S, until_ns=2 * HOUR, seed=2))
    kinds = [each.verdict.kind for each in after]
    assert kinds[:3] == [Kind.SUSPECT, Kind.SUSPECT, Kind.STEPPED]
    assert kinds.count(Kind.STEPPED) == 1
    assert abs(after[2].verdict.by_ns - step_ns) < 300 * US
    assert (after[1].estimate.error_ns or 0) > abs(step_ns)
    assert after[2].estimate.samples == 3
    assert (after[2].estimate.error_ns or 0) < MS
    assert after[-1].miss_ns < 80 * US


def test_broken_answers_are_put_aside() -> None:
    discipline, truth = Discipline(), Truth(10_000)
    seen = list(follow(discipline, truth, until_ns=HOUR))
    at_ns = seen[-1].at_ns + 30 * S
    for n, lie_ns in enumerate([HOUR, -HOUR, 5 * S, -5 * S, HOUR]):
        good = exchange(truth, at_ns + n * S, 100 * US, 100 * US)
        bad = good._replace(offset_ns=good.offset_ns + lie_ns)
        assert discipline.feed(bad).kind is Kind.SUSPECT, "no two of them agree"
        true_at(discipline, truth, bad.local_ns)
        assert (discipline.at(bad.local_ns).error_ns or 0) > abs(lie_ns) - 100 * MS
    good = exchange(truth, at_ns + 10 * S, 100 * US, 100 * US)
    assert discipline.feed(good).kind is Kind.USED
    _, estimate = true_at(discipline, truth, good.local_ns)
    assert (estimate.error_ns or 0) < MS
    assert estimate.samples > 60


def test_a_rate_that_leaves_its_band_starts_a_new_estimate() -> None:
    discipline, truth = Discipline(), Truth(0)
    seen = list(follow(discipline, truth, until_ns=HOUR))
    at_ns = seen[-1].at_ns + 10 * S
    truth.turn(at_ns, 200_000)  # a daemon slews the machine's clock by 200 ppm
    kinds = []
    for n in range(200):
        sample = exchange(truth, at_ns + n * 16 * S, 100 * US, 100 * US)
        kinds.append(discipline.feed(sample).kind)
    assert Kind.STEPPED in kinds[:6]
    assert kinds.count(Kind.STEPPED) == 1
    _, estimate = true_at(discipline, truth, at_ns + 200 * 16 * S)
    assert abs(estimate.rate_ppb - 200_000) < 100


def test_a_slow_leak_out_of_the_band_halves_the_window() -> None:
    # Each rate agrees with the one before; the first and the last do not.
    discipline, truth = Discipline(Tuning(wander_ppb=100)), Truth(0)
    for n in range(1, 20):
        truth.turn(n * 300 * S, n * 60)
    kinds, counts = set(), []
    for n in range(1, 360):
        kinds.add(discipline.feed(exchange(truth, n * 16 * S, US, US)).kind)
        counts.append(discipline.at(n * 16 * S).samples)
    assert kinds <= {Kind.USED, Kind.HELD}
    assert any(after < before for before, after in pairwise(counts))
    assert abs(discipline.at(360 * 16 * S).rate_ppb - 19 * 60) < 200


def test_a_leap_second_smeared_over_a_day_is_followed() -> None:
    discipline, truth = Discipline(), Truth(15_000)
    truth.turn(2 * HOUR, 15_000 - 11_574).turn(26 * HOUR, 15_000)
    tuned = list(follow(discipline, truth, until_ns=28 * HOUR, poll_ns=128 * S))
    assert {each.verdict.kind for each in tuned} <= {Kind.USED, Kind.HELD}, "nothing was stepped"
    assert truth.at(28 * HOUR) - 28 * 3_600 * 15 * US == pytest.approx(-S, rel=0.001)
    assert misses(tuned)[-1] < 2 * MS  # the guess lags while the rate is learned anew
    assert max(each.estimate.error_ns or 0 for each in tuned[64:]) < 4 * MS
    assert abs(tuned[len(tuned) // 2].estimate.rate_ppb - 3_426) < 100


def test_impossible_samples_are_refused() -> None:
    discipline = Discipline()
    assert discipline.feed(Sample(10, 0, -1)).kind is Kind.REFUSED
    assert discipline.feed(Sample(10, 0, 0, -1)).kind is Kind.REFUSED
    assert discipline.at(10).state == State.UNSET
    assert discipline.feed(Sample(10, 0, 0)).kind is Kind.USED
    assert discipline.feed(Sample(10, 0, 0)).kind is Kind.REFUSED
    assert discipline.feed(Sample(9, 0, 0)).kind is Kind.REFUSED
    for times in [(10, 0, 0, 5), (0, 10, 5, 20), (0, 0, 50, 20)]:
        assert exchanged(*times).delay_ns < 0, times
        assert discipline.feed(exchanged(*times)).kind is Kind.REFUSED


def test_a_peer_whose_clock_is_fast_and_took_its_time_is_not_impossible() -> None:
    # It worked for a second, on a clock that is 100 ppm fast: more than the whole trip took.
    assert exchanged(0, 0, S + 100 * US, S).delay_ns == 0
    assert exchanged(0, 0, S + 600 * US, S).delay_ns < 0


def test_what_the_peer_says_of_itself_is_in_the_bound() -> None:
    sample = exchanged(1000, 5000, 5000, 3001, error_ns=7 * US)
    assert sample.offset_ns == 2999
    assert sample.delay_ns == 2001
    assert sample.local_ns == 2000
    assert sample.half_ns == 1001 + 7 * US + 2 + 2  # drift over 2,001 ns, rounded up; readings


def test_a_restart_forgets() -> None:
    discipline = Discipline()
    discipline.feed(Sample(10, 5, 0))
    discipline.restart()
    assert discipline.at(20).state == State.UNSET
    assert discipline.feed(Sample(10, 77, 0)).kind is Kind.USED
    assert discipline.at(10).offset_ns == 77


@settings(max_examples=40, deadline=None)
@given(data=st.data(), wander_ppb=st.sampled_from([0, 100, 15_000, 100_000]))
def test_the_bound_is_true(data: st.DataObject, wander_ppb: int) -> None:
    """Any rates in any band, any delays, any gaps, any errors that the reference owns up to."""
    base_ppb = data.draw(st.integers(-400_000, 400_000))
    truth = Truth(base_ppb, data.draw(st.integers(-DAY, DAY)))
    discipline = Discipline(Tuning(wander_ppb=wander_ppb, points_max=8, register=3))
    gap = st.one_of(st.integers(1, MS), st.integers(MS, 100 * S), st.integers(HOUR, DAY))
    delay = st.one_of(st.integers(0, MS), st.integers(0, 2 * S))
    now_ns = 1
    for _ in range(data.draw(st.integers(1, 25))):
        now_ns += data.draw(gap)
        truth.turn(now_ns, base_ppb + data.draw(st.integers(0, wander_ppb)))
        error_ns = data.draw(st.integers(0, MS))
        sample = exchange(truth, now_ns, data.draw(delay), data.draw(delay))
        lie_ns = data.draw(st.integers(-error_ns, error_ns))
        verdict = discipline.feed(
            sample._replace(
                offset_ns=sample.offset_ns + lie_ns, error_ns=sample.error_ns + error_ns
            )
        )
        assert verdict.kind in (Kind.USED, Kind.HELD)
        now_ns = 2 * sample.local_ns - now_ns
        true_at(discipline, truth, now_ns)
        true_at(discipline, truth, data.draw(st.integers(0, now_ns)))
    true_at(discipline, truth, now_ns + data.draw(gap))


@given(
    samples=st.lists(
        st.tuples(st.integers(1, 99), st.integers(-50, 50), st.integers(0, 9)),
        min_size=1,
        max_size=12,
    ),
    dropped=st.integers(0, 11),
)
def test_a_window_that_slides_is_as_one_made_anew(
    samples: list[tuple[int, int, int]], dropped: int
) -> None:
    now_ns, made = 0, []
    for after_ns, offset_ns, delay_ns in samples:
        now_ns += after_ns
        made.append(Sample(now_ns, offset_ns, delay_ns))
    window = _Window(made)
    window.drop(min(dropped, len(made) - 1))
    kept = [point.sample for point in window.points]
    assert kept == made[len(made) - len(kept) :]
    assert window.points == _Window(kept).points
    slopes = [
        sorted((b.offset_ns - a.offset_ns) * S // (b.local_ns - a.local_ns) for b in kept if b != a)
        for a in kept
    ]
    assert [point.slopes for point in window.points] == slopes
    if len(kept) % 2 == 0:
        middles = sorted((each[(len(each) - 1) // 2]) for each in slopes)
        half = len(middles) // 2
        guess_ppb = window.rates(Tuning())[1]
        assert middles[half - 1] <= guess_ppb <= middles[half]


@given(
    current_ns=st.integers(-DAY, DAY),
    target_ns=st.integers(-DAY, DAY),
    elapsed_ns=st.integers(0, DAY),
    ppm_max=st.integers(0, 1_000_000),
)
def test_a_slew_goes_there_and_never_takes_utc_back(
    current_ns: int, target_ns: int, elapsed_ns: int, ppm_max: int
) -> None:
    after_ns = slewed(current_ns, target_ns, elapsed_ns, ppm_max)
    assert elapsed_ns + after_ns - current_ns >= 0
    assert abs(after_ns - current_ns) * 1_000_000 <= elapsed_ns * ppm_max
    assert min(current_ns, target_ns) <= after_ns <= max(current_ns, target_ns)
    assert slewed(current_ns, target_ns, 10**6 * DAY * 2, 1) == target_ns


def test_a_slew_in_figures() -> None:
    assert slewed(0, MS, S, 500) == 500 * US
    assert slewed(0, -MS, 3 * S, 500) == -MS
    for ppm_max in (-1, 1_000_001):
        with pytest.raises(ValueError, match=r"the range is 0 to 1000000"):
            slewed(0, 1, 1, ppm_max)
    with pytest.raises(ValueError, match="can't go back"):
        slewed(0, 1, -1, 500)
