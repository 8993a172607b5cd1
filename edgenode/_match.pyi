def select(
    page: list[bytes],
    begin: int,
    kinds_low: int,
    kinds_high: int,
    needles: tuple[bytes, ...],
    prefix: bytes,
) -> list[int]: ...
