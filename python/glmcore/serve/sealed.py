"""Reasoning as the opaque text that clients keep and send back in the place of its words.

To a client it is opaque: `signature` of a thinking block, `encrypted_content` of a reasoning item. Here it is the text
itself in base64, since the reasoning of an open model is no secret. Nothing is trusted because of it: whoever sends a
conversation may write whatever reasoning they like.
"""

import base64
import binascii

PREFIX = "glm1"


def sealed(reasoning: str) -> str:
    """The reasoning as opaque text."""
    return PREFIX + base64.b64encode(reasoning.encode(errors="replace")).decode()


def opened(text: str) -> str:
    """The reasoning that such a text holds; empty for any other text, such as those of other servers."""
    if not text.startswith(PREFIX):
        return ""
    try:
        return base64.b64decode(text[len(PREFIX) :], validate=True).decode(errors="replace")
    except (binascii.Error, ValueError):
        return ""
