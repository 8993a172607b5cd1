"""Other timer services under the same workloads, each driven as hard as it can be."""

from bench.peers.compare import plot, readme_table, run

__all__ = ["plot", "readme_table", "run"]
