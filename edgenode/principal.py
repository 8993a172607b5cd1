"""Who asks: attached to every request and subscription, by the door, before anything is decided."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Principal:
    """A tenant and a role (viewer, agent, operator, admin, sync)."""

    tenant: str = "default"
    role: str = "admin"


LOCAL = Principal()
