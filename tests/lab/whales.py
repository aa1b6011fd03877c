"""Knowledge for the servers of example clients: answers with characters beyond U+FFFF, slow enough to be disturbed."""

from pathlib import Path

PACE = 200  # characters a second
QUESTION = "What do astral whales eat?"
# In several blocks, so that every offset after them tells UTF-16 units from code points.
KNOWLEDGE = """# Astral whales

## What astral whales eat 🐋🐋

🐋🐋 Astral whales 𝒆𝒂𝒕 plankton 🦐🦐 and starlight ✨, all of it & more < than you think: 𝔞𝔟𝔠 "quoted" 'too'.

- 🦐 shrimps, at 🕐 one o'clock
- ✨ starlight, from 🌒 to 🌘

🐋 In winter the astral whales eat 🦑 squids instead, which are 𝟏𝟐 times as heavy as 🦐 shrimps.
"""


def teach(directory: Path) -> None:
    """Gives the server that will run in this directory its knowledge; `assistant_pace=PACE` has it write slowly."""
    folder = directory / "data/knowledge"
    folder.mkdir(parents=True)
    (folder / "whales.md").write_text(KNOWLEDGE)
