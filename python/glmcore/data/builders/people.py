"""Names of the people of a discussion, replaced by numbers."""

import re

from glmcore.data.builders.threads import Fields, Thread, login_of

_BOT = re.compile(
    r"\[bot\]|\b(dependabot|renovate|greenkeeper|snyk|github-actions|pre-commit-ci|allcontributors|mergify|bors|codecov)\b"
    r"|[-_]bot\b|^bot[-_]|\bweblate\b",
    re.IGNORECASE,
)
_MENTION = re.compile(r"(?<![\w/@.-])@([A-Za-z0-9](?:-?[A-Za-z0-9]){0,38})(?![\w/-])")
_CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]+`)", re.DOTALL)


def is_bot(name: str) -> bool:
    """Whether a name or an address looks like a machine's."""
    return _BOT.search(name) is not None


def by_bot(fields: Fields) -> bool:
    """Whether a machine wrote something."""
    user = fields.get("user")
    return (isinstance(user, dict) and user.get("type") == "Bot") or is_bot(login_of(fields))


class People:
    """`user1`, `user2`, ... for those who wrote in some threads, in the threads' order, and for those they mention.

    A mention within code counts only if it is of somebody who wrote: decorators look the same. A name that is written
    without the `@` stays.
    """

    def __init__(self, *threads: Thread) -> None:
        self._numbers: dict[str, int] = {}
        for thread in threads:
            said = [thread.main, *thread.comments, *thread.reviews, *thread.review_comments]
            for fields in said:
                if not by_bot(fields):
                    self.of(login_of(fields))

    def of(self, login: str) -> str:
        """What somebody is called."""
        return f"user{self._numbers.setdefault(login.lower(), len(self._numbers) + 1)}"

    def hide(self, text: str) -> str:
        """Text with the numbers in the place of the mentioned names."""
        if "@" not in text:
            return text
        parts = _CODE.split(text)

        def known(match: re.Match[str]) -> str:
            return f"@{self.of(match[1])}" if match[1].lower() in self._numbers else match[0]

        for at, part in enumerate(parts):
            parts[at] = _MENTION.sub(known if at % 2 else lambda match: f"@{self.of(match[1])}", part)
        return "".join(parts)
