"""Questions that are answered by searching: a tool finds pages of a local index, the last message is the answer."""

from collections.abc import Sequence

from glmcore.chat import Message, ToolCall
from glmcore.data.lookups import SEARCH_TOOL, all_pages, generate_lookups, search_result
from glmcore.envs.config import SearchConfig
from glmcore.envs.index import SearchIndex
from glmcore.envs.items import choose, read_items, read_json_lines, text_of
from glmcore.envs.protocol import Item, Split, Start, StepResult
from glmcore.errors import RequestError

NUM_LOOKUPS = 20_000
"""More than there are; see `generate_lookups`."""


class SearchEnv:
    """One question. The reward is 1 if the last message is one of the answers, up to case and spaces.

    Args:
        pages: What is found.
        index: Of each page, with its title.
        config: How much a search gives.
    """

    def __init__(self, pages: Sequence[str], index: SearchIndex, config: SearchConfig) -> None:
        self._pages = pages
        self._index = index
        self._config = config
        self._answers: set[str] | None = None
        self._searches = 0

    async def reset(self, task: Item) -> Start:
        """Pose the question."""
        answers = task.data["answers"]
        self._answers = {_plain(str(answer)) for answer in ([answers] if isinstance(answers, str) else answers)}
        return Start([{"role": "user", "content": text_of(task.data, "question")}], [SEARCH_TOOL])

    async def step(self, message: Message) -> StepResult:
        """Search, or judge the answer.

        Raises:
            RequestError: There was no `reset`.
        """
        if self._answers is None:
            raise RequestError("reset the environment before the first step")
        if message.tool_calls:
            return StepResult([{"role": "tool", "content": self._call(call)} for call in message.tool_calls])
        right = float(message.finished_thinking and _plain(message.content) in self._answers)
        return StepResult(reward=right, done=True, parts={"right": right, "searches": float(self._searches)})

    def _call(self, call: ToolCall) -> str:
        query = call.arguments.get("query")
        if call.name != "search" or not isinstance(query, str) or set(call.arguments) != {"query"}:
            return "error: the only tool is search, with the argument query"
        self._searches += 1
        found = self._index.search(query, self._config.results)
        return search_result([self._pages[number][: self._config.max_page_chars] for number, _ in found])

    async def close(self) -> None:
        """Nothing is held."""


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).removesuffix(".")


class SearchFamily:
    """Questions and pages of the user, or `glmcore.data.lookups`.

    Args:
        config: Where they are.
        names: None.

    Raises:
        DataError: A file cannot be read, or a line lacks a key.
    """

    def __init__(self, config: SearchConfig, names: Sequence[str]) -> None:
        self._config = config
        self._index: SearchIndex | None = None
        self._texts: list[str] = []

    def tasks(self, split: Split, count: int, seed: int) -> list[Item]:
        """See `Family.tasks`."""
        if self._config.questions is not None:
            return choose(read_items(self._config.questions, ["question", "answers"]), split, count, seed)
        lookups = generate_lookups(NUM_LOOKUPS, self._config.world, held_out=split == "held_out")
        return choose(
            [Item(one.id, {"question": one.question, "answers": one.answer}) for one in lookups], None, count, seed
        )

    def new(self) -> SearchEnv:
        """The environment of one more episode; the first one makes the index."""
        if self._index is None:
            pages = self._pages()
            self._texts = [text for _, text in pages]
            self._index = SearchIndex(f"{title}\n{text}" for title, text in pages)
        return SearchEnv(self._texts, self._index, self._config)

    def _pages(self) -> list[tuple[str, str]]:
        if self._config.pages is not None:
            return [(str(page.get("title", "")), text_of(page, "text")) for page in read_json_lines(self._config.pages)]
        return list(all_pages(self._config.world))

    def close(self) -> None:
        """Forget the index."""
        if self._index is not None:
            self._index.close()
