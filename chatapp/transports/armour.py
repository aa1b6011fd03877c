"""An encoding ("armour") of HTML that middleboxes leave alone.

Such boxes (address obfuscation, script injection, minification) act on text/html regardless of headers.
"""

from __future__ import annotations

import base64

from flask import Response, request

ARMOUR = "armour"  # query parameter; 1 asks for the encoding


def armoured(answer: bytes) -> bytes:
    """Return the HTML as base64 in one element, with nothing for a rewriter to find."""
    return b"<chat-armour>" + base64.b64encode(answer) + b"</chat-armour>"


def armour_response(response: Response) -> Response:
    """Armour an HTML response if the query asks for it. For `after_request`."""
    is_asked = request.args.get(ARMOUR) == "1"
    if is_asked and response.status_code == 200 and response.mimetype == "text/html":
        response.set_data(armoured(response.get_data()))
    return response
