"""How far ahead fires are committed."""

from __future__ import annotations

from edgenode.lead import FIRST_NS, SAMPLES_MAX, Lead

MS = 1_000_000


def test_it_begins_wide_and_narrows_to_what_the_disk_takes() -> None:
    lead = Lead(2 * MS, 100 * MS)
    assert lead.ns == FIRST_NS
    for _ in range(200):
        lead.feed(5 * MS)
    assert lead.ns == 5 * MS + 5 * MS // 10


def test_it_follows_a_rise_at_once_and_forgets_it_in_time() -> None:
    lead = Lead(2 * MS, 100 * MS)
    for _ in range(200):
        lead.feed(MS)
    assert lead.ns == 2 * MS  # lead_min
    lead.feed(40 * MS)
    assert lead.ns == 44 * MS
    for _ in range(SAMPLES_MAX + 200):
        lead.feed(MS)
    assert lead.ns == 2 * MS


def test_it_stays_below_its_limit() -> None:
    lead = Lead(2 * MS, 100 * MS)
    lead.feed(5_000 * MS)
    assert lead.ns == 100 * MS
