"""Names of the people of a discussion, replaced by numbers."""

import re

from glmcore.data.builders.threads import Thread, login_of

_MENTION = re.compile(r"(?<![\w/@.`-])@([A-Za-z0-9](?:-?[A-Za-z0-9]){0,38})(?![\w/-])")
_CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]+`)", re.DOTALL)


class People:
    """`user1`, `user2`, ... for those who wrote in some threads, in the threads' order, and for those they mention.

    A mention within code counts only if it is of somebody who wrote: decorators look the same. A name that is written
    without the `@` stays.
    """

    def __init__(self, *threads: Thread) -> None:
        self._numbers: dict[str, int] = {}
        for thread in threads:
            said = [thread.main, *thread.comments, *thread.reviews, *thread.review_comments]
            for login in map(login_of, said):
                self.of(login)

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
