"""The search agent: what it finds, what it cites, where it stops."""

import json
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import Reply, tool_call, write_scripted_model

from glmcore.cli import main
from glmcore.demo.bm25 import K1, B, Bm25, words
from glmcore.demo.models import LocalModel
from glmcore.demo.passages import PASSAGE_CHARACTERS, read_passages
from glmcore.demo.search import Library, cited, search
from glmcore.errors import DataError

ANSWER = "Runs resume from the last saved step [1]. Not from [7]."


def scores_by_the_formula(texts, query):
    """BM25 of every text, written as the paper has it."""
    split = [words(text) for text in texts]
    mean = sum(map(len, split)) / len(split) or 1.0
    totals = []
    for text in split:
        total, counts = 0.0, Counter(text)
        for word in set(words(query)):
            n = sum(word in other for other in split)
            idf = math.log(1 + (len(split) - n + 0.5) / (n + 0.5))
            total += idf * counts[word] * (K1 + 1) / (counts[word] + K1 * (1 - B + B * len(text) / mean))
        totals.append(total)
    return totals


TEXTS = st.lists(st.lists(st.sampled_from("abcdef"), max_size=12).map(" ".join), min_size=1, max_size=8)


@given(texts=TEXTS, query=st.lists(st.sampled_from("abcx"), max_size=4).map(" ".join), limit=st.integers(1, 9))
def test_a_search_ranks_by_bm25(texts, query, limit):
    found = Bm25(texts).search(query, limit)

    expected = scores_by_the_formula(texts, query)
    assert len(found) == min(limit, sum(score > 0 for score in expected))
    # A sum of at most four terms in another order: 1e-12 is thousands of roundings.
    for number, score in found:
        assert math.isclose(score, expected[number], rel_tol=1e-12)
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    left_out = set(range(len(texts))) - {number for number, _ in found}
    assert all(expected[number] <= found[-1][1] * (1 + 1e-12) for number in left_out if found)


@given(text=st.text(alphabet="ab \n", max_size=6000))
def test_passages_hold_every_line_once_and_say_where_it_stands(tmp_path_factory, text):
    file = tmp_path_factory.mktemp("documents") / "a.txt"
    file.write_bytes(text.encode())
    if not text.strip():
        with pytest.raises(DataError, match="no text to search"):
            read_passages([file])
        return
    lines = text.split("\n")
    passages = read_passages([file])
    for passage in passages:
        assert passage.text == "\n".join(lines[passage.first_line - 1 : passage.last_line])
        assert len(passage.text) <= 2 * PASSAGE_CHARACTERS + max(map(len, lines))
    told = {number for passage in passages for number in range(passage.first_line, passage.last_line + 1)}
    assert {number for number, line in enumerate(lines, 1) if line.strip()} <= told
    assert [passage.number for passage in passages] == list(range(1, len(passages) + 1))


@pytest.fixture
def documents(tmp_path):
    folder = tmp_path / "documents"
    (folder / ".hidden").mkdir(parents=True)
    (folder / "resume.md").write_text("# Resume\n\nA run resumes from its last saved step.\n")
    (folder / "zoo.txt").write_text("Elephants are large.\n")
    (folder / ".hidden" / "secret.txt").write_text("Elephants are secret.\n")
    (folder / "picture.bin").write_bytes(b"\xff\xfe")
    return folder


def test_a_folder_gives_its_files_of_text_and_nothing_hidden(documents):
    passages = read_passages([documents])
    assert [passage.path for passage in passages] == [str(documents / name) for name in ("resume.md", "zoo.txt")]
    with pytest.raises(DataError, match="not UTF-8"):
        read_passages([documents / "picture.bin"])
    with pytest.raises(DataError, match="neither a file nor a folder"):
        read_passages([documents / "nowhere"])


def test_wrong_calls_are_told_what_is_wrong(documents):
    library = Library(read_passages([documents]))
    assert "Nothing was found" in library.run("search", {"query": "giraffe"})
    assert "query must be a text" in library.run("search", {"query": 3})
    assert "1 to 2" in library.run("open", {"number": 9})
    assert "no tool 'delete'" in library.run("delete", {})


def test_only_passages_that_were_shown_are_cited(documents):
    library = Library(read_passages([documents]))
    assert cited("All of it [1, 2].", library) == []
    library.run("search", {"query": "elephants"})
    assert [passage.number for passage in cited("Large [2], [1], [2], [99].", library)] == [2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    script = [
        Reply("", thinking="I must search.", call=tool_call("search", query="run resume")),
        Reply(ANSWER, thinking="Found.", when="<|observation|>"),
    ]
    return write_scripted_model(tmp_path_factory.mktemp("scripted") / "model", script)


def test_an_agent_searches_answers_and_cites(documents, checkpoint):
    finding = search(LocalModel(checkpoint, max_tokens=200), read_passages([documents]), "How does a run resume?")
    assert finding.answer == ANSWER
    assert [source.source for source in finding.sources] == [f"{documents}/resume.md:1-4"]
    assert [(step.tool, step.arguments) for step in finding.steps] == [("search", {"query": "run resume"})]
    assert "last saved step" in finding.steps[0].result
    assert finding.num_turns == 2


def test_the_last_turn_calls_no_tool(documents, checkpoint):
    finding = search(LocalModel(checkpoint, max_tokens=200), read_passages([documents]), "How?", max_turns=1)
    assert (finding.steps, finding.num_turns) == ([], 1)


def test_the_command_prints_answer_and_sources(documents, checkpoint, capsys):
    assert main(["demo", "search", "How does a run resume?", str(documents), "--model", str(checkpoint)]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{ANSWER}\n[1] {documents}/resume.md:1-4\n"
    assert 'search {"query": "run resume"}' in printed.err
    assert main(["demo", "search", "How?", str(documents), "--model", str(checkpoint), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["sources"] == [{"number": 1, "source": f"{documents}/resume.md:1-4"}]
    assert told["num_turns"] == 2
    assert main(["demo", "search", "How?", str(documents), "--url", "http://127.0.0.1:9/v1"]) == 1
    assert "cannot reach" in capsys.readouterr().err
