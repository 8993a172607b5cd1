from typing import Any, TypeAlias

from _typeshed import SupportsLenAndGetItem

_Words: TypeAlias = SupportsLenAndGetItem[Any]  # any contiguous buffer of int64

def prepare() -> bool: ...
def wakes(gaps_ns: _Words, late_ns: _Words) -> None: ...
