"""How far ahead fires are committed."""

from __future__ import annotations

from edgenode.lead import FIRST_NS, GENERATION, LEARN, TIGHTEN_EVERY, Lead

MS = 1_000_000


def test_it_begins_wide_and_narrows_to_what_the_disk_takes() -> None:
    lead = Lead(2 * MS, 100 * MS)
    assert lead.ns == FIRST_NS + FIRST_NS // 10
    for _ in range(LEARN // 6 - 1):
        lead.feed(5 * MS)
    assert lead.ns >= FIRST_NS, "a few hundred say nothing of one in a thousand"
    for _ in range(TIGHTEN_EVERY):
        lead.feed(5 * MS)
    assert 5 * MS <= lead.ns <= 5.5 * MS


def test_it_follows_a_rise_at_once_and_forgets_it_in_time() -> None:
    lead = Lead(2 * MS, 100 * MS)
    for _ in range(LEARN):
        lead.feed(MS // 2)
    assert lead.ns == 2 * MS  # lead_min
    lead.feed(40 * MS)
    assert 40 * MS <= lead.ns <= 44 * MS
    for _ in range(3):
        lead.feed(40 * MS)
    for _ in range(GENERATION):
        lead.feed(MS // 2)
    assert lead.ns >= 40 * MS, "a bad spell is remembered"
    for _ in range(GENERATION + TIGHTEN_EVERY):
        lead.feed(MS // 2)
    assert lead.ns == 2 * MS


def test_long_commits_count_for_the_fires_that_come_due_meanwhile() -> None:
    # One in 2,000 commits takes 20 ms: that is 1 % of the time, though 0.05 % of the commits.
    lead = Lead(2 * MS, 100 * MS)
    for n in range(8_000):
        lead.feed(20 * MS if n % 2_000 == 1_000 else MS)
    assert 20 * MS <= lead.ns <= 22 * MS


def test_it_stays_below_its_limit() -> None:
    lead = Lead(2 * MS, 100 * MS)
    lead.feed(5_000 * MS)
    assert lead.ns == 100 * MS
