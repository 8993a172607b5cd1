"""Benchmarks: one file a question. Each has `run(small) -> dict` and prints what it measured."""
