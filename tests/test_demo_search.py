"""The search agent: what it finds, what it cites, where it stops."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_server import serving
from scripted import Reply, tool_call, write_scripted_model

from glmcore.cli import main
from glmcore.demo.models import LocalModel
from glmcore.demo.passages import PASSAGE_CHARACTERS, read_passages
from glmcore.demo.search import Library, cited, search
from glmcore.errors import DataError

ANSWER = "Runs resume from the last saved step [1]. Not from [7]."


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


def test_the_command_asks_a_server(documents, checkpoint, capsys):
    with serving(checkpoint) as url:
        assert main(["demo", "search", "How does a run resume?", str(documents), "--url", f"{url}/v1"]) == 0
        assert capsys.readouterr().out == f"{ANSWER}\n[1] {documents}/resume.md:1-4\n"
        assert main(["demo", "search", "How?", str(documents), "--url", f"{url}/v1", "--name", "other"]) == 1
        assert "answered 404" in capsys.readouterr().err
    assert main(["demo", "search", "How?", str(documents), "--url", f"{url}/v1"]) == 1
    assert "cannot reach" in capsys.readouterr().err
