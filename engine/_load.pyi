from pathlib import Path
from typing import final

from engine.record import Standing

LOG_FORMAT: int
TABLES_FORMAT: int

@final
class StoreLoader:
    def __new__(cls, data_dir: Path, epoch: int, from_seq: int) -> StoreLoader: ...
    def load(self, items: bytes) -> None: ...
    def finish(self, standing: Standing) -> None: ...
    def close(self) -> None: ...
