from edgenode.call import Answer, Frames
from edgenode.config import LimitsSection
from edgenode.principal import Principal
from engine.clock import Now

def read_singles(
    came: list[tuple[int, Frames, Principal]],
    at: int,
    limit: int,
    headers: set[bytes],
    principal: Principal,
    now: Now,
    limits: LimitsSection,
) -> list[bytes]: ...
def answer_singles(
    came: list[tuple[int, Frames, Principal]],
    at: int,
    views: list[bytes],
    answers: list[Answer],
) -> None: ...
