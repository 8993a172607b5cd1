"""A picture answers as a node does, changes nothing, and says why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgenode.bundles.view import PictureNode, open_picture
from edgenode.virtual import VirtualNode
from engine.files import catch_up, close_store, open_store
from minoots.client import Client
from minoots.testing import client_of
from minoots.wire.bodies import TimerFilter
from minoots.wire.problems import MinootsError, Refused, Unreachable
from tests.unit.churn import contents
from tests.unit.stored import opened

NODE = "rack-7"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    place = tmp_path / "bundles/pictures" / NODE / "store"
    place.mkdir(parents=True)
    virtual = VirtualNode()
    with client_of(virtual) as client:
        for number in range(40):
            client.schedule("tea", after="90d", labels={"number": str(number)})
        client.cancel(next(iter(client.list())))
    with opened(place) as (log, tables, writer):
        writer.write(virtual.log.events(1, 1_000, 1 << 30))
        catch_up(log, tables)
    return place


@pytest.fixture
def client(store: Path) -> Iterator[Client]:
    node = PictureNode(store, NODE, "yesterday")
    with client_of(node) as client:
        yield client
    node.close()


def test_it_answers_all_that_only_looks(client: Client) -> None:
    assert client.hello().node_id == NODE
    timers = list(client.list())
    assert len(timers) == 39
    assert client.get(timers[0].id).id == timers[0].id
    assert len(list(client.list(TimerFilter(name_prefix="no")))) == 0
    history = client.history(timers[0].id)
    assert [event.type for event in history] == ["timer.scheduled"]
    assert client.stats()["timers"]["pending"] == 39
    assert client.health()["status"] == "read_only"


def test_it_changes_nothing_and_says_why(client: Client, store: Path) -> None:
    for ask in (
        lambda: client.schedule("x", after="1h"),
        lambda: client.cancel("tea"),
        lambda: client.cancel_many({"name_prefix": ""}),
        lambda: client.consumers.create("jobs"),
    ):
        with pytest.raises(Refused, match="a picture of rack-7 as of yesterday") as refused:
            ask()
        assert refused.value.code == "read_only"
    with pytest.raises(MinootsError, match="no live events"):
        next(iter(client.watch()))


def test_looking_leaves_the_store_as_it_was(store: Path) -> None:
    before = contents(store)
    node = PictureNode(store, NODE, "yesterday")
    with client_of(node) as client:
        assert list(client.list())
    node.close()
    assert contents(store) == before


def test_one_that_is_not_there_or_in_use_is_told(tmp_path: Path, store: Path) -> None:
    with pytest.raises(Unreachable, match=r"no picture of 'x' here; there are: rack-7"):
        open_picture(str(tmp_path), "x")
    log, tables = open_store(store)
    with pytest.raises(Unreachable, match="locked by"):
        open_picture(str(tmp_path), NODE)
    close_store(store, log, tables)
    open_picture(str(tmp_path), NODE).close()
