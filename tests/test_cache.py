"""What is kept to be sent again is bounded by its bytes, however long people write."""

import tracemalloc
import uuid

from chatapp.cache import Cache
from chatapp.chat import LONGEST_MESSAGE
from chatapp.parts import Parts
from chatapp.transports.rendering import MOST_RENDERED_BYTES
from chatapp.transports.subscriptions import MOST_CACHED_BYTES

MESSAGES = 120
CURSORS = 60  # frames of 60 to 120 messages of 100 kB each: some 500 MB


def test_the_oldest_go_first_by_number_and_by_bytes() -> None:
    cache: Cache[str, int] = Cache(3, 100)
    for number, key in enumerate("abcd"):
        cache.put(key, number, 10)
    assert dict(cache) == {"b": 1, "c": 2, "d": 3} and cache.bytes == 30
    cache.put("b", 7, 85)
    assert dict(cache) == {"d": 3, "b": 7} and cache.bytes == 95, "its older size is forgotten"
    cache.put("huge", 8, 101)
    assert dict(cache) == {"d": 3, "b": 7}
    cache.put("b", 9, 101)
    assert dict(cache) == {"d": 3} and cache.bytes == 10, "nothing out of date is left in its place"


def test_frames_of_long_messages_do_not_fill_the_memory(parts: Parts) -> None:
    ada = parts.store.people.add_admin("Ada", "ada@example.org", "x").id
    place = parts.chat.create(ada, str(uuid.uuid4()))
    for _ in range(MESSAGES):
        parts.chat.post(ada, place.uuid, str(uuid.uuid4()), "&" * LONGEST_MESSAGE)
    tracemalloc.start()
    try:
        for cursor in range(1, CURSORS + 1):
            news = parts.reader.read(ada, place.uuid, cursor)
            assert news.frame is not None
        del news
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1.25 * (MOST_CACHED_BYTES + MOST_RENDERED_BYTES)
