"""What arrives is what was sent: checks in everything that has content, and a form that no box on the way alters.

Boxes that rewrite HTML (address obfuscation, script injection, minification) act on text/html whatever the headers say.
A check is the CRC-32 of a content's UTF-8, as eight hexadecimal digits: it is against accidents, not against attackers.
"""

from __future__ import annotations

import base64
import html
import re
from zlib import crc32

from flask import Response, request

from chatapp.store import Block, ChangedMessage

# Conversations are private: no cache on the way, and none for the back button after signing out. And nobody on the way
# is to change what is said: some boxes rewrite HTML only where this does not forbid it.
UNKEPT = "no-store, no-transform"
ARMOUR = "armour"  # the parameter that asks for the form below, with the value 1
_TAG = re.compile(r'<(?:[^<>"]|"[^"]*")*>')
_LINK = re.compile(r'<a (?:[^>"]|"[^"]*")*?\bhref="([^"]*)"')


def check_of(text: str) -> str:
    """The check of a text."""
    return f"{crc32(text.encode('utf-8', 'surrogatepass')):08x}"


def message_check(message: ChangedMessage) -> str:
    """The check of a message: of its words as a browser reads them, of where the links in it lead, and of the source
    that patches append to.
    """
    if message.author == "user":
        return check_of(message.body)
    words = "".join([_words(block) for block in message.blocks])
    source = message.blocks[-1].html if message.blocks and message.state == "running" else ""
    return check_of(words + "".join(_links(message.blocks)) + source)


def _words(block: Block) -> str:
    return html.unescape(_TAG.sub("", block.html))


def _links(blocks: tuple[Block, ...]) -> list[str]:
    return [html.unescape(target) for block in blocks for target in _LINK.findall(block.html)]


def armoured(answer: bytes) -> bytes:
    """The same HTML as letters and digits in one element: nothing in it looks like anything."""
    return b"<chat-armour>" + base64.b64encode(answer) + b"</chat-armour>"


def armour_response(response: Response) -> Response:
    """Armour what is asked for so. For `after_request`."""
    asked = request.args.get(ARMOUR) == "1"
    if asked and response.status_code == 200 and response.mimetype == "text/html":
        response.set_data(armoured(response.get_data()))
    return response
