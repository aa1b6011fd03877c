"""Checksums of content, and an encoding ("armour") that HTML-rewriting middleboxes leave alone.

Such boxes (address obfuscation, script injection, minification) act on text/html regardless of headers. A checksum
is the CRC-32 of the UTF-8, as eight hexadecimal digits: against accidents, not against attackers.
"""

from __future__ import annotations

import base64
import html
import re
from zlib import crc32

from flask import Response, request

from chatapp.store import Block, ChangedMessage

# no-store also keeps pages from the back button after signing out; some middleboxes obey no-transform.
UNKEPT = "no-store, no-transform"
ARMOUR = "armour"  # query parameter; 1 asks for the encoding
_TAG = re.compile(r'<(?:[^<>"]|"[^"]*")*>')
_LINK = re.compile(r'<a (?:[^>"]|"[^"]*")*?\bhref="([^"]*)"')


def checksum(text: str) -> str:
    """Return the checksum of a text."""
    return f"{crc32(text.encode('utf-8', 'surrogatepass')):08x}"


def message_checksum(message: ChangedMessage) -> str:
    """Return the checksum of a message: of its text as a browser shows it, its links' targets, and its open block's
    HTML.
    """
    if message.author == "user":
        return checksum(message.body)
    text = "".join([_text(block) for block in message.blocks])
    source = message.blocks[-1].html if message.blocks and message.state == "running" else ""
    return checksum(text + "".join(_links(message.blocks)) + source)


def _text(block: Block) -> str:
    return html.unescape(_TAG.sub("", block.html))


def _links(blocks: tuple[Block, ...]) -> list[str]:
    return [html.unescape(target) for block in blocks for target in _LINK.findall(block.html)]


def armoured(answer: bytes) -> bytes:
    """Return the HTML as base64 in one element, with nothing for a rewriter to find."""
    return b"<chat-armour>" + base64.b64encode(answer) + b"</chat-armour>"


def armour_response(response: Response) -> Response:
    """Armour an HTML response if the query asks for it. For `after_request`."""
    is_asked = request.args.get(ARMOUR) == "1"
    if is_asked and response.status_code == 200 and response.mimetype == "text/html":
        response.set_data(armoured(response.get_data()))
    return response
