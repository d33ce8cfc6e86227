import io
import json
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmcore.data.builders import commits as commits_module
from glmcore.data.builders.commits import parse_log, read_commits
from glmcore.data.builders.history import CommitRules, commit_documents
from glmcore.data.builders.issues import IssueRules, issue_documents
from glmcore.data.builders.people import People
from glmcore.data.builders.redact import without_trailers
from glmcore.data.builders.threads import Thread, closed_issues
from glmcore.data.documents import read_documents, write_documents
from glmcore.errors import DataError


class Repository:
    """A git repository that a test writes commits into."""

    def __init__(self, directory):
        self.directory = directory
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments, author="Ada <ada@lovelace.org>"):
        name, _, email = author.rstrip(">").partition(" <")
        identity = ["-c", f"user.name={name}", "-c", f"user.email={email}", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(self.directory), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, message, files, author="Ada <ada@lovelace.org>"):
        for path, content in files.items():
            target = self.directory / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                target.unlink()
            else:
                target.write_bytes(content if isinstance(content, bytes) else content.encode())
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--cleanup=verbatim", "--message", message, author=author)
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path)


def no_reject(place, reason):
    raise AssertionError((place, reason))


LINES = [f"line {number}\n" for number in range(20)]


def test_a_commit_is_its_message_and_diff_and_names_nobody(repository):
    repository.commit("Start with text", {"a.txt": "".join(LINES)})
    changed = [*LINES]
    changed[3] = "by grace@hopper.mil\n"
    message = "Name the author\n\nFor ada@lovelace.org.\n\nSigned-off-by: Ada <ada@lovelace.org>\nChange-Id: I123\n"
    name = repository.commit(message, {"a.txt": "".join(changed)})
    first, second = commit_documents(repository.directory, name="demo", together=False, on_reject=no_reject)
    assert first.text.startswith(
        "commit: Start with text\n\ndiff --git a/a.txt b/a.txt\nnew file mode 100644\n--- /dev/null\n"
    )
    assert second.id == f"demo/commit/{name}"
    assert second.text == (
        "commit: Name the author\n\nFor <EMAIL>.\n\n"
        "diff --git a/a.txt b/a.txt\n--- a/a.txt\n+++ b/a.txt\n@@ -1,7 +1,7 @@\n line 0\n line 1\n line 2\n"
        "-line 3\n+by <EMAIL>\n line 4\n line 5\n line 6\n\n"
    )
    [both] = commit_documents(repository.directory, name="demo", on_reject=no_reject)
    assert both.text == first.text + second.text
    assert both.id == f"{first.id}..{name}"


def test_renames_deletions_binaries_and_odd_paths_are_told(repository):
    text = "".join(LINES)
    repository.commit(
        "Add some files here",
        {"old name.py": text, "gone.py": "x = 1\n", "blob.bin": b"\0\1", '\u4f60\t".py': "y = 1\n"},
    )
    repository.commit(
        "Move and delete files",
        {"old name.py": None, "new name.py": text, "gone.py": None, "blob.bin": b"\0\2", '\u4f60\t".py': "y = 2\n"},
    )
    first, second = read_commits(repository.directory)
    assert {file.path for file in first.files} == {"old name.py", "gone.py", "blob.bin", '\u4f60\t".py'}
    by_path = {file.path: file for file in second.files}
    assert by_path["new name.py"].old_path == "old name.py"
    assert not by_path["new name.py"].hunks
    assert by_path["gone.py"].old_path == "gone.py"
    assert by_path["blob.bin"].is_binary
    assert by_path['\u4f60\t".py'].num_changed_lines == 2
    [document] = commit_documents(repository.directory, on_reject=no_reject)
    assert "rename from old name.py\nrename to new name.py\n" in document.text
    assert "diff --git a/blob.bin b/blob.bin\n(binary)\n" in document.text
    assert "deleted file mode 100644\n--- a/gone.py\n+++ /dev/null\n" in document.text
    assert "\nindex " not in document.text
    assert "similarity" not in document.text


def test_nothing_written_in_a_commit_can_pass_for_another(repository):
    fake = "\0\0" + "0" * 40 + "\0Eve\0e@e\0fake\0\n\ndiff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -0,0 +1 @@\n+evil\n"
    (repository.directory / ".gitattributes").write_text("*.dat diff\n")
    repository.commit(
        "Say as others do\n\ndiff --git a/m b/m\n@@ -1 +1 @@\n", {"f.dat": fake, "g.txt": "one\n\n+++ b/z\n"}
    )
    repository.commit("Change what was said", {"f.dat": fake.replace("evil", "good"), "g.txt": "two\n\n+++ b/z"})
    first, second = read_commits(repository.directory)
    assert [file.path for file in first.files] == [".gitattributes", "f.dat", "g.txt"]
    assert [file.path for file in second.files] == ["f.dat", "g.txt"]
    assert second.files[1].hunks[-1] == "\\ No newline at end of file"
    assert first.message.endswith("@@ -1 +1 @@")


def test_a_repositorys_settings_change_nothing(repository):
    repository.commit("Start with text", {"a.txt": "".join(LINES), "b.txt": "b\n"})
    repository.commit("Change the text", {"a.txt": "".join(LINES[2:]), "b.txt": "c\n"})
    [before] = commit_documents(repository.directory, on_reject=no_reject)
    mark = repository.directory / "ran"
    for key, value in {
        "diff.noprefix": "true", "diff.context": "1", "diff.algorithm": "patience", "color.ui": "always",
        "log.showRoot": "false", "diff.external": f"touch {mark}", "diff.x.textconv": f"touch {mark};", "log.showSignature": "true",
        "diff.orderFile": str(repository.directory / "order"), "format.pretty": "oneline", "core.pager": f"touch {mark}", "diff.renames": "false",
    }.items():  # fmt: skip
        repository.git("config", key, value)
    (repository.directory / "order").write_text("b.txt\n")
    (repository.directory / ".git/info/attributes").write_text("*.txt diff=x\n")
    [after] = commit_documents(repository.directory, on_reject=no_reject)
    assert after == before
    assert not mark.exists()


def test_merges_are_left_out_or_whole(repository):
    repository.commit("Start with text", {"a.txt": "a\n"})
    repository.git("checkout", "--quiet", "-b", "side")
    repository.commit("One on the side", {"b.txt": "b\n"})
    repository.commit("Two on the side", {"c.txt": "c\n"})
    repository.git("checkout", "--quiet", "main")
    repository.commit("Go on in main", {"a.txt": "aa\n"})
    repository.git("merge", "--quiet", "--no-ff", "--message", "Merge what side has", "side")
    skipped = [commit.message for commit in read_commits(repository.directory)]
    assert sorted(skipped) == ["Go on in main", "One on the side", "Start with text", "Two on the side"]
    whole = list(read_commits(repository.directory, merges="first-parent"))
    assert [commit.message for commit in whole] == ["Start with text", "Go on in main", "Merge what side has"]
    assert [file.path for file in whole[-1].files] == ["b.txt", "c.txt"]


def test_commits_that_teach_nothing_are_left_out_with_the_reason(repository, monkeypatch):
    monkeypatch.setattr(commits_module, "MAX_DIFF_BYTES", 2_000)
    repository.commit("Bump x from 1 to 2", {"a.py": "x = 2\n"}, author="dependabot[bot] <support@github.com>")
    repository.commit("wip", {"a.py": "x = 3\n"})
    repository.commit("Nothing at all is changed", {})
    repository.commit("Add many files at once", {f"f{at}.py": "x = 1\n" for at in range(9)})
    repository.commit("Lock versions of packages", {"Cargo.lock": "x\n", "pic.png": b"\0"})
    repository.commit("A long file and a short one", {"long.py": "x = 1\n" * 900, "short.py": "y = 1\n"})
    repository.commit("A change of many lines", {f"g{at}.py": f"x = {at}\n" * 90 for at in range(5)})
    repository.commit("Text in an old encoding", {"old.txt": "caf\u00e9\n".encode("latin-1")})
    rejects = []
    rules = CommitRules(max_files=8, max_changed_lines=300)
    documents = list(
        commit_documents(
            repository.directory, name="n", rules=rules, on_reject=lambda _, reason: rejects.append(reason)
        )
    )
    assert len(documents) == 1
    assert "--- /dev/null\n+++ b/long.py\n(900 changed lines, too long)\n" in documents[0].text
    assert "+y = 1\n" in documents[0].text
    assert rejects == [
        "made by a bot",
        "hardly a message",
        "no change of text",
        "9 files, at most 8 are taken",
        "no change of text",
        "450 changed lines, at most 300 are taken",
        "no change of text",
    ]


def test_documents_of_commits_are_bounded(repository):
    for at in range(6):
        repository.commit(f"Commit number {at}", {"a.txt": f"{at}\n" * 10 * (1 + 9 * (at == 5))})
    rejects = []
    documents = list(
        commit_documents(repository.directory, max_length=600, on_reject=lambda *told: rejects.append(told))
    )
    assert len(documents) > 1
    assert all(len(document.text) <= 600 for document in documents)
    assert "".join(document.text for document in documents).count("commit: ") == 6 - len(rejects)


def test_a_place_without_commits_is_one_clear_line(tmp_path, repository):
    with pytest.raises(DataError, match="has no commit 'HEAD'"):
        list(read_commits(repository.directory))
    with pytest.raises(DataError, match="missing has no commit"):
        list(read_commits(tmp_path / "missing"))


def test_a_damaged_repository_is_an_error_after_what_could_be_read(repository):
    repository.commit("Start with text", {"a.txt": "one\n"})
    repository.commit("Go on with text", {"a.txt": "two\n"})
    lost = repository.git("rev-parse", "HEAD:a.txt")
    (repository.directory / ".git/objects" / lost[:2] / lost[2:]).unlink()
    found = read_commits(repository.directory)
    assert next(found).message == "Start with text"
    with pytest.raises(DataError, match="git log in"):
        list(found)


def test_a_log_that_is_left_early_leaves_no_process_behind(repository):
    for at in range(3):
        repository.commit(f"Commit number {at}", {"a.txt": f"{at}\n" * 50_000})
    found = read_commits(repository.directory)
    next(found)
    found.close()  # a process that is not waited for would be a ResourceWarning, which is an error here


def test_the_checkouts_own_history_is_read(request):
    root = request.config.rootpath
    if not (root / ".git").exists():
        pytest.skip("no checkout")
    expected = subprocess.run(
        ["git", "-C", str(root), "rev-list", "--no-merges", "--reverse", "--max-count=20", "HEAD"], check=True, capture_output=True, text=True
    )  # fmt: skip
    names = expected.stdout.split()
    found = list(read_commits(root, revision=f"{names[0]}..HEAD"))
    assert [commit.name for commit in found][-len(names) + 1 :] == names[1:]
    assert all(commit.files for commit in found)
    documents = list(commit_documents(root, revision=f"{names[0]}..HEAD", on_reject=lambda *_: None))
    assert documents
    assert not any("lovelace" in document.text and "@" in document.text.split("commit:")[0] for document in documents)


@given(
    log=st.binary(max_size=400)
    | st.lists(
        st.sampled_from(
            [
                b"\0\0a\0b\0c\0m\n\0\n",
                b"diff --git a/x b/x\n",
                b"@@ -1,3 +1 @@\n",
                b"+a\n",
                b"-b\n",
                b" \n",
                b"--- a/x\n",
                b"\\ No\n",
                b"+++ /dev/null\n",
            ]
        )
    ).map(b"".join)
)
def test_a_broken_log_is_an_error_or_commits(log):
    try:
        for commit in parse_log(io.BytesIO(log)):
            assert all(isinstance(file.path, str) for file in commit.files)
    except DataError:
        pass


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        ("Fix it\n\nCo-authored-by: A <a@b.c>\nReviewed-by: B\n", "Fix it"),
        ("Fix it\n\nNote: this stays\nSee-also: that\n", "Fix it\n\nNote: this stays\nSee-also: that"),
        ("Fix\n\n    git-svn-id: https://svn x\n", "Fix"),
    ],
)
def test_lines_that_name_people_are_left_out_of_messages(message, kept):
    assert without_trailers(message) == kept


API = "https://api.github.com/repos/o/r"
LONG = "It returns one where it should return two, and that breaks whatever comes after it. " * 3


def issue(number, login="alice", body=LONG, **more):
    return {"url": f"{API}/issues/{number}", "number": number, "title": f"Issue {number}", "body": body, "user": {"login": login}, **more}  # fmt: skip


def pull(number, sha="0" * 40, login="bob", body="", **more):
    base = {"sha": sha, "repo": {"full_name": "o/r"}}
    return {"url": f"{API}/pulls/{number}", "number": number, "title": f"Pull {number}", "body": body, "user": {"login": login}, "base": base, "merged_at": "2024", **more}  # fmt: skip


def changed(number, *files):
    return {"repository": "o/r", "pull_number": number, "files": list(files)}


PATCH = {"filename": "a.py", "status": "modified", "patch": "@@ -1,2 +1,2 @@\n def f():\n-    return 1\n+    return 2"}


def build(records, **options):
    rejects = []
    placed = [(f"line {at}", record) for at, record in enumerate(records)]
    documents = list(issue_documents(placed, on_reject=lambda *told: rejects.append(told), **options))
    return documents, rejects


def test_a_pull_request_comes_with_its_issue_the_files_before_it_and_its_diff(repository, tmp_path):
    sha = repository.commit(
        "Start with two files",
        {"b.py": "import a\n\nx = a.f()\n", "a.py": "def f():\n    return 1\n", "new.py": "no\n"},
    )
    repository.commit("Go on with the files", {"a.py": "def f():\n    return 3\n"})
    records = [
        issue(3, body=f"{LONG}<!-- template --> cc @carol, see `@property` and mail me@foo.org", labels=[{"name": "bug"}], comments=2),
        {"issue_url": f"{API}/issues/3", "id": 2, "created_at": "2021", "user": {"login": "codecov[bot]"}, "body": "coverage"},
        {"issue_url": f"{API}/issues/3", "id": 1, "created_at": "2020", "user": {"login": "bob"}, "body": "Right, @alice\r\n\r\nOn Mon, Alice wrote:\n> It returns\n"},
        pull(4, sha, body="Fixes #3 for @Alice"),
        changed(
            4,
            {"filename": "b.py", "status": "modified", "patch": "@@ -3 +3 @@\n-x = a.f()\n+y = a.f()"},
            PATCH,
            {"filename": "new.py", "status": "added", "patch": "@@ -0,0 +1 @@\n+no"},
            {"filename": "pic.png", "status": "added"},
        ),
        {"pull_request_url": f"{API}/pulls/4", "path": "a.py", "id": 7, "created_at": "2022", "user": {"login": "alice"}, "body": "Two, not three", "diff_hunk": "@@ -1,2 +1,2 @@\n def f():\n-    return 1\n+    return 3"},
        {"pull_request_url": f"{API}/pulls/4", "state": "APPROVED", "id": 8, "submitted_at": "2023", "user": None, "body": "Good now."},
    ]  # fmt: skip
    [document], rejects = build(records, checkouts={"o/r": repository.directory})
    assert rejects == []
    assert document.id == "o/r/pull/4"
    assert document.text == (
        "# repository: o/r\n# issue 3: Issue 3\nlabels: bug\nuser1:\n"
        + LONG
        + " cc @user4, see `@property` and mail <EMAIL>\n\n"
        "user2:\nRight, @user1\n\n"
        "# pull request 4: Pull 4\nuser2:\nFixes #3 for @user1\n\n"
        "user3 in a review:\nGood now.\n\n"
        "user1 on a.py:\n@@ -1,2 +1,2 @@\n def f():\n-    return 1\n+    return 3\nTwo, not three\n\n"
        "# file: a.py\ndef f():\n    return 1\n\n# file: b.py\nimport a\n\nx = a.f()\n\n"
        "diff --git a/a.py b/a.py\n--- a/a.py\n+++ b/a.py\n@@ -1,2 +1,2 @@\n def f():\n-    return 1\n+    return 2\n"
        "diff --git a/b.py b/b.py\n--- a/b.py\n+++ b/b.py\n@@ -3 +3 @@\n-x = a.f()\n+y = a.f()\n"
        "diff --git a/new.py b/new.py\n--- /dev/null\n+++ b/new.py\n@@ -0,0 +1 @@\n+no\n"
        "diff --git a/pic.png b/pic.png\n(binary or too long)\n"
    )
    assert (
        list(read_documents(tmp_path / "d.jsonl")) == [document]
        if write_documents(tmp_path / "d.jsonl", [document])
        else False
    )
    [shuffled], _ = build(records[::-1], checkouts={"o/r": repository.directory})
    assert shuffled == document


def test_files_are_left_out_longest_first_and_then_the_whole_if_it_is_too_long(repository):
    sha = repository.commit("Start with two files", {"a.py": "def f():\n    return 1\n", "b.py": "x = 1\n" * 200})
    records = [
        pull(4, sha),
        changed(4, PATCH, {"filename": "b.py", "status": "modified", "patch": "@@ -1 +1 @@\n-x = 1\n+x = 2"}),
    ]
    [document], _ = build(records, checkouts={"o/r": repository.directory}, max_length=500)
    assert "# file: a.py" in document.text
    assert "# file: b.py" not in document.text
    assert len(document.text) <= 500
    documents, rejects = build(records, checkouts={"o/r": repository.directory}, max_length=100)
    assert not documents
    assert rejects[0][0] == "o/r/pull/4"
    assert "at most 100" in rejects[0][1]


def test_an_issue_stays_alone_where_nothing_that_is_kept_closes_it():
    records = [
        issue(1), issue(2), issue(3), pull(5, body="fixes #2", merged_at=None), changed(5, PATCH),
        pull(6, body="Closes: #3, resolves o/r#3 and fixes other/r#1"), changed(6, PATCH), pull(7, body="fix #3"), changed(7, PATCH),
    ]  # fmt: skip
    documents, rejects = build(records)
    assert [document.id for document in documents] == ["o/r/issues/1", "o/r/pull/6", "o/r/pull/7", "o/r/issues/2"]
    assert "# issue 3" in documents[1].text
    assert "# issue 3" not in documents[2].text
    assert rejects == [("o/r/pull/5", "not merged")]


def test_threads_that_teach_nothing_are_left_out_with_the_reason():
    records = [
        issue(1, body="short"),
        issue(2, body="log line\n" * 1_000),
        issue(3, login="renovate-bot"),
        pull(4),
        pull(5, login="dependabot[bot]"),
        pull(6),
        changed(6, *({**PATCH, "filename": f"{at}.py"} for at in range(60))),
        {"issue_url": f"{API}/issues/9", "body": "lost", "user": {"login": "x"}},
        {"what": "ever"},
        {"filename": "a.py", "patch": "@@"},
    ]
    documents, rejects = build(records, rules=IssueRules(max_files=50))
    assert documents == []
    assert rejects == [
        ("line 8", "no issue, pull request, comment, review or changed file"),
        ("line 9", "no issue, pull request, comment, review or changed file"),
        ("o/r/issues/1", "5 characters, at least 200 are wanted"),
        ("o/r/issues/2", "9000 characters by one user, at most 7000 are taken"),
        ("o/r/issues/3", "made by a bot"),
        ("o/r/pull/4", "no change of text"),
        ("o/r/pull/5", "made by a bot"),
        ("o/r/pull/6", "60 files, at most 50 are taken"),
        ("o/r/issues/9", "comments without their issue"),
    ]


def test_nested_lists_and_long_comments_are_read():
    comments = [{"user": {"login": "bob"}, "body": "\n".join(f"row {at}" for at in range(300)), "created_at": "1"}]
    [document], rejects = build([issue(1, comments=comments)])
    assert rejects == []
    assert "row 79\n(200 lines left out)\nrow 280\n" in document.text


@given(
    record=st.dictionaries(
        st.sampled_from(
            [
                "number",
                "title",
                "body",
                "user",
                "url",
                "issue_url",
                "files",
                "base",
                "filename",
                "comments",
                "labels",
                "merged_at",
                "pull_number",
            ]
        ),
        st.none()
        | st.integers()
        | st.sampled_from(["", "x", "\ud800", "1"])
        | st.just("https://api.github.com/repos/o/r/issues/1")
        | st.lists(
            st.none()
            | st.dictionaries(st.sampled_from(["body", "user", "patch", "filename"]), st.sampled_from(["a", "\ud800"])),
            max_size=2,
        ),
    )
)
def test_no_record_stops_the_rest(record):
    documents, _ = build([record, issue(12)], rules=IssueRules(min_chars=1))
    assert "o/r/issues/12" in {document.id for document in documents}
    json.dumps([vars(document) for document in documents], ensure_ascii=False).encode()


def test_mentions_in_code_are_of_people_who_wrote():
    thread = Thread("o/r", 1, {"user": {"login": "Ann"}})
    hidden = People(thread).hide("@ann @Bob\n```\n@ann @override\n```\nx@y.z `@bob` @types/node @bob")
    assert hidden == "@user1 @user2\n```\n@user1 @override\n```\nx@y.z `@user2` @types/node @user2"


def test_closing_words_name_issues_of_the_same_repository():
    body = (
        "Fixes #1, closed #2; resolve: #3 and closes https://github.com/O/r/issues/4, fixes a/b#5, prefixes #6, see #7"
    )
    assert closed_issues({"title": "fix #8", "body": body}, "o/r") == [1, 2, 3, 4, 8]
