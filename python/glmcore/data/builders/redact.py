"""What is left out of public text: addresses, keys and the names of people."""

import re

EMAIL = "<EMAIL>"
KEY = "<KEY>"
_DOMAIN = re.compile(r"@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")
_LOCAL_PART = re.compile(r"[\w.+-]{1,64}\Z")
_MAX_LOCAL_CHARS = 64
_NOT_BEFORE = re.compile(r"[\w.+/:-]")
_EXAMPLE = re.compile(r"@(?:[\w-]+\.)*(?:example\.(?:com|org|net)|invalid|test|localhost|users\.noreply\.github\.com)$")
_KEY_BEGIN = re.compile(r"-----BEGIN (?:[A-Z]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_KEY_END = re.compile(r"-----END (?:[A-Z]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_MAX_KEY_CHARS = 20_000
_TOKENS = {
    "AKIA": r"\bAKIA[0-9A-Z]{16}\b",  # Amazon
    "ASIA": r"\bASIA[0-9A-Z]{16}\b",
    **{f"gh{kind}_": rf"\bgh{kind}_[0-9A-Za-z]{{36,255}}\b" for kind in "pousr"},
    "sk_live_": r"\bsk_live_[0-9A-Za-z]{20,250}\b",
    "npm_": r"\bnpm_[0-9A-Za-z]{36}\b",
    "hf_": r"\bhf_[0-9A-Za-z]{30,60}\b",
    "github_pat_": r"\bgithub_pat_[0-9A-Za-z_]{60,255}\b",
    "glpat-": r"\bglpat-[\w-]{20,64}",
    "xox": r"\bxox[abeoprs]-[0-9A-Za-z-]{10,250}",  # Slack
    "AIza": r"\bAIza[\w-]{35}",  # Google
    "sk-": r"\bsk-(?:ant-|proj-)?[\w-]{32,200}",
    "pypi-": r"\bpypi-[\w-]{60,250}",
    "eyJ": r"(?<![\w-])eyJ[\w-]{10,2000}\.eyJ[\w-]{10,4000}\.[\w-]{10,2000}",  # JSON web tokens
}
_KNOWN_TOKENS = [(sign, re.compile(pattern)) for sign, pattern in _TOKENS.items()]
"""A sign that every token of the kind holds, since to look for that is much faster, and the form."""
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
    text = _without_emails(text)
    if "PRIVATE KEY" in text:
        text = _without_private_keys(text)
    for sign, form in _KNOWN_TOKENS:
        if sign in text:
            text = form.sub(KEY, text)
    return text


def _without_emails(text: str) -> str:
    parts: list[str] = []
    done = 0
    for domain in _DOMAIN.finditer(text):
        at = domain.start()
        local = _LOCAL_PART.search(text, max(done, at - _MAX_LOCAL_CHARS), at)
        if local is None or local[0] == "git" or _EXAMPLE.match(domain[0].lower()):
            continue
        start = local.start()
        if start and _NOT_BEFORE.match(text[start - 1]):
            continue  # a longer word, or part of an address on the web
        parts += [text[done:start], EMAIL]
        done = domain.end()
    return "".join([*parts, text[done:]])


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
