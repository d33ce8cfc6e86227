"""What is left out of public text: addresses, keys and the names of people."""

import re

EMAIL = "<EMAIL>"
KEY = "<KEY>"
_EMAIL = re.compile(r"(?<![\w.+/:-])(?!git@)[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")
_EXAMPLE = re.compile(r"@(?:[\w-]+\.)*(?:example\.(?:com|org|net)|invalid|test|localhost|users\.noreply\.github\.com)$")
_KEY_BEGIN = re.compile(r"-----BEGIN (?:[A-Z]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_KEY_END = re.compile(r"-----END (?:[A-Z]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_MAX_KEY_CHARS = 20_000
_TOKEN = re.compile(
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"  # Amazon
    r"|\bgh[pousr]_[0-9A-Za-z]{36,255}\b|\bgithub_pat_[0-9A-Za-z_]{60,255}\b|\bglpat-[\w-]{20,64}"
    r"|\bxox[abeoprs]-[0-9A-Za-z-]{10,250}|\bAIza[\w-]{35}|\bsk-(?:ant-|proj-)?[\w-]{32,200}|\bsk_live_[0-9A-Za-z]{20,250}"
    r"|\bnpm_[0-9A-Za-z]{36}\b|\bpypi-[\w-]{60,250}|\bhf_[0-9A-Za-z]{30,60}\b"
    r"|(?<![\w-])eyJ[\w-]{10,2000}\.eyJ[\w-]{10,4000}\.[\w-]{10,2000}"  # JSON web tokens
)
_TRAILER = re.compile(
    r"^[ \t]*(?:[A-Z][a-z]+(?:-[a-z]+)*-by|Cc|CC|Author|Committer|From|Change-Id|git-svn-id|Gerrit-\w+)[ \t]*:.*\n?",
    re.MULTILINE,
)


def redact(text: str) -> str:
    """Text with `<EMAIL>` for each e-mail address and `<KEY>` for private keys and access tokens of known forms.

    Addresses under names that are reserved for examples stay, and so does `git@host` of a clone address. Secrets
    without a form of their own (passwords) are not found. The placeholders are those of StarCoder (arXiv:2305.06161,
    section 4).
    """
    if "@" in text:
        text = _EMAIL.sub(lambda match: match[0] if _EXAMPLE.search(match[0].lower()) else EMAIL, text)
    if "PRIVATE KEY" in text:
        text = _without_private_keys(text)
    return _TOKEN.sub(KEY, text)


def _without_private_keys(text: str) -> str:
    parts: list[str] = []
    done = 0
    for begin in _KEY_BEGIN.finditer(text):
        end = _KEY_END.search(text, begin.end(), begin.end() + _MAX_KEY_CHARS) if begin.start() >= done else None
        if end is not None:
            parts += [text[done : begin.start()], KEY]
            done = end.end()
    return "".join([*parts, text[done:]])


def without_trailers(message: str) -> str:
    """A commit's message without the lines that name people (`Signed-off-by:` and the like) or other systems' ids."""
    return _TRAILER.sub("", message).strip()
