"""Single operations, by pytest-benchmark: `make bench-micro`."""
