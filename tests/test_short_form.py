"""The short form of what an answer grows by: who reads it shows what the answer is, whatever they missed."""

import json
import random
import uuid

import pytest
from headless.core import Script
from lab.elements import parse
from lab.peer import Applied, Feed, unfolded

from chatapp.assistant.markdown import GrowingAnswer
from chatapp.parts import Parts
from chatapp.store.steps import add_step, read_steps, without_colours
from chatapp.transports import protocol
from chatapp.transports.long_poll import Poll
from chatapp.transports.subscriptions import are_distinct

DOCUMENT = """Grüße, 👩‍👩‍👧 and **words** that aren't `code < 3`.

| Wer | "Was" |
|---|---:|
| 日本 | 12 |
| 'x' & y | 👍 |

```python
def check(name: str) -> int:  # 👍 a comment
    return 12 if name == "it's" else len(f"{name}")
```

1. one
   ```json
   {"a": "b's", "n": 12}
   ```
2. two **words** and then some more of them, so that the list goes on after its code
3. three

Then it ends with \\"quotes\\" and [a link](https://example.org/?a=1&b=2).
"""


class Grown:
    """An answer that was written bit by bit; the frames of a reader who got each, and of others who missed some."""

    def __init__(self, parts: Parts, seed: int) -> None:
        self.parts, self.chance = parts, random.Random(seed)
        self.person = parts.store.people.add_admin("Ada", f"{seed}@example.org", "x").id
        self.name = str(uuid.uuid4())
        parts.chat.create(self.person, self.name)
        parts.chat.post(self.person, self.name, str(uuid.uuid4()), "A question")
        self.cursors = [0] * 4  # of readers who look ever more rarely
        self.frames: list[list[str]] = [[] for _ in self.cursors]
        self.forms = [lambda: True, lambda: True, lambda: True, lambda: self.chance.random() < 0.5]

    def write(self) -> list[str]:
        """Write the whole answer; its blocks."""
        runs, growing, at = self.parts.store.runs, GrowingAnswer(), 0
        run = runs.claim_run("lease")
        assert run is not None
        self.read(always=True)
        while at < len(DOCUMENT):
            size = self.chance.choice([1, 3, 9, 30])
            growing.feed(DOCUMENT[at : at + size])
            at += size
            if self.chance.random() < 0.1:  # somebody comes in the middle of it
                self.cursors.append(0)
                self.frames.append([])
                self.forms.append(self.chance.choice(self.forms[2:4]))
            if changed := growing.changed():
                runs.write_answer(run, None, changed)
            self.read()
        growing.finish()
        runs.end_run(run, "completed", growing.body, growing.changed(), None)
        self.read(always=True)
        place = self.parts.chat.place(self.person, self.name)
        return [block.html for block in self.parts.chat.changes(place, 0).items[-1].blocks]

    def read(self, always: bool = False) -> None:
        """Let readers look, who look rarely not each time."""
        for number, cursor in enumerate(self.cursors):
            if always or number > 3 or self.chance.random() < 0.5**number:
                update = self.parts.reader.read(self.person, self.name, cursor, self.forms[number]())
                self.cursors[number] = update.cursor
                if update.frame is not None:
                    self.frames[number].append(update.frame)


@pytest.mark.parametrize("seed", range(12))
def test_readers_of_the_short_form_show_the_answer(parts: Parts, seed: int) -> None:
    grown = Grown(parts, seed)
    blocks = grown.write()
    script = Script("tests/js/feeds.js")
    growth = f"{protocol.GROWTH} at="
    assert sum(frame.startswith(growth) for frame in grown.frames[0]) > 2, "those of the shortest form"
    assert any(" paint=" in frame for frames in grown.frames for frame in frames)
    for frames in grown.frames:
        answers = [protocol.answer([frame]) if frame.startswith(growth) else frame for frame in frames]
        for sent in (frames, answers):
            applied = script.call("grown", sent, ["list", grown.name])
            assert None not in applied and {one["feed"] for one in applied} == {grown.name}
            shown = {int(index): html for index, html in applied[-1]["blocks"].items()}
            assert [shown[index] for index in range(len(blocks))] == blocks
        peer = Applied()
        peer.feeds[grown.name] = Feed()
        for frame in frames:
            peer.apply(unfolded(parse(frame).elements[0], peer.feeds))
        assert not peer.must_resubscribe and peer.feeds[grown.name].ordered()[-1].blocks == blocks


def test_in_a_poll_of_several_frames_names_are_whole(parts: Parts) -> None:
    """The wrapper says the growth of one answer only: of two, each has a frame of the plain form."""
    ada = parts.store.people.add_admin("Ada", "ada@example.org", "x").id
    cursors = {}
    for name in (str(uuid.uuid4()), str(uuid.uuid4())):
        parts.chat.create(ada, name)
        parts.chat.post(ada, name, str(uuid.uuid4()), "A question")
        run = parts.store.runs.claim_run("lease")
        assert run is not None
        parts.store.runs.write_answer(run, None, [(0, "<p>a</p>")])
        cursors[name] = parts.reader.read(ada, name, 0).cursor
        parts.store.runs.write_answer(run, None, [(0, "<p>ab</p>")])
    epoch = parts.store.people.epoch()
    one = dict([*cursors.items()][:1])
    (frame,) = parts.polls.now(ada, Poll(epoch, one, 0, is_short=True))
    assert frame.startswith(f"{protocol.GROWTH} at=")
    frames = parts.polls.now(ada, Poll(epoch, cursors, 0, is_short=True))
    assert [f'feed="{name}"' in frame for name, frame in zip(cursors, frames, strict=True)] == [True, True]
    assert len(parts.polls.now(ada, Poll(epoch, {**cursors, "list": 0}, 0, is_short=True))) == 3


def test_a_name_that_two_feeds_could_have_is_left_alone() -> None:
    script = Script("tests/js/feeds.js")
    frame = '<chat-feed at="2,0,0,0" feed="28d9" to="2" check="0" html="x"></chat-feed>'
    [found] = script.call("grown", [frame], ["28d9216f", "28d97777"])
    assert found["feed"] == "28d9"
    assert script.call("grown", [frame], [])[0]["feed"] == "28d9"
    assert are_distinct(["list", "28d9216f", "38d9216f"]) and not are_distinct(["28d9216f", "28d97777"])


def test_steps_of_an_older_version_are_read_and_it_reads_ours() -> None:
    """Both run for a moment while one is exchanged for the other."""
    old = "[[3,4,10]]"
    assert [(step.start, step.plain_start, step.plain_end) for step in read_steps(old)] == [(10, 0, 0)]
    code = '<figure class="code">{}</figure>'
    steps = add_step(old, 4, 5, code.format("if x"), code.format("<b>if</b> x: y"))
    (_, ours) = read_steps(steps)
    assert (ours.start, ours.plain_start, ours.plain_end) == (21, 25, len("</figure>"))
    seen_by_the_older = [step for step in json.loads(steps) if step[1] > 4]
    assert seen_by_the_older == [[4, 5, 21]]
    assert without_colours("<p><b>no code</b></p>") == "<p><b>no code</b></p>"
