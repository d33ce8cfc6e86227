"""The chat page as a browser shows it, over the real server."""

import json
import re

import httpx
import pytest
from live_server import serving
from playwright.sync_api import expect
from scripted import Reply, tool_call, write_scripted_model

from glmcore.serve.page.router import PAGE

HOSTILE = """# A title
Words that are **bold**, *leaning* and `code`.

- one
- two

| a | b |
|---|---|
| 1 | 2 |

<img src=x onerror="document.title='taken'"><script>document.title='taken'</script>
[a link](https://example.org/) and [no link](javascript:document.title='taken')

```html
<b>kept as text</b>
```
After it."""
COUNT = " ".join(map(str, range(2500)))
TALK = Reply(HOSTILE, thinking="Let me <b>think</b> first.")
LONG = Reply(COUNT, when="~")
CALLS = Reply("I look.", call=tool_call("look_up", place="France"), when="<arg_key>")
AFTER = Reply("It is Paris.", when="<|observation|>")
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    directory = write_scripted_model(tmp_path_factory.mktemp("page") / "model", [TALK, LONG, CALLS, AFTER], 4096)
    with serving(directory) as address:
        yield address


@pytest.fixture
def page(browser, url):
    """The page; the test fails if it asks another server for anything, or something goes wrong in it."""
    expect.set_options(timeout=30_000)  # milliseconds; a busy machine makes no test fail
    opened = browser.new_page(viewport={"width": 800, "height": 900})
    problems: list[str] = []
    refused = "the server responded with a status of 400"  # Chromium tells of every refusal; the page shows it
    opened.on("console", lambda message: None if refused in message.text else problems.append(message.text))
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on(
        "request", lambda request: None if request.url.startswith((url, "data:")) else problems.append(request.url)
    )
    opened.goto(url)
    expect(opened.locator("#model")).to_have_text("glm")
    yield opened
    opened.close()
    assert problems == []


def ask(page, text):
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")


def status(page, text):
    expect(page.locator("#status")).to_have_text(text)


def test_an_answer_is_shown_with_thinking_folded_and_its_rate(page, tmp_path):
    ask(page, "Hello\nthere")
    status(page, "The answer is complete")
    answer = page.locator("article.assistant")
    thinking = answer.locator("details")
    assert thinking.get_attribute("open") is None
    thinking.locator("summary").click()
    assert thinking.locator(".thought").inner_text() == TALK.thinking
    assert re.match(
        r"\d+ tokens, [\d.]+ tokens/s, first after \d+\.\d\d s, prompt \d+ tokens", answer.locator(".rate").inner_text()
    )
    assert page.locator("article.user .text").inner_text() == "Hello\nthere"
    page.screenshot(path=tmp_path / "page.png", full_page=True)


def test_markdown_is_drawn_and_html_stays_text(page):
    ask(page, "Hello")
    status(page, "The answer is complete")
    text = page.locator("article.assistant .text")
    assert text.locator("h3").inner_text() == "A title"
    assert [text.locator(tag).first.inner_text() for tag in ("strong", "em", "li", "td")] == [
        "bold",
        "leaning",
        "one",
        "1",
    ]
    assert text.locator("pre").inner_text().strip() == "<b>kept as text</b>"
    assert text.locator("a").evaluate_all("links => links.map(link => [link.href, link.rel])") == [
        ["https://example.org/", "noopener noreferrer nofollow"]
    ]
    assert text.locator("img, script, b").count() == 0
    assert "<script>document.title='taken'</script>" in text.inner_text()
    assert page.title() == "glmcore chat"


def test_a_running_answer_can_be_stopped_by_button_and_by_key(page, url):
    for number in (1, 2):
        ask(page, "~")
        expect(page.locator("article.assistant .text").last).to_contain_text("1 2 3")
        if number == 1:
            page.get_by_role("button", name="Stop").click()
        else:
            page.keyboard.press("Escape")
        status(page, "Stopped")
        expect(page.locator(".rate").last).to_contain_text("stopped")
        assert not page.locator("article.assistant .text").last.inner_text().endswith("2499")
        expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    assert "\nglmcore_generations_in_flight 0.0\n" in httpx.get(f"{url}/metrics").text


def test_tool_calls_are_shown_and_answered_by_hand(page):
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Tools, a JSON list").fill(json.dumps(TOOLS))
    page.get_by_label("Think before answering").uncheck()
    page.get_by_role("button", name="Done").click()
    ask(page, "What is the capital?")
    result = page.get_by_label("Result of look_up")
    expect(result).to_be_focused()
    assert page.locator("details.call summary").inner_text() == "Calls look_up"
    assert json.loads(page.locator("details.call pre").inner_text()) == {"place": "France"}
    result.fill("Paris")
    page.get_by_role("button", name="Send results").click()
    status(page, "The answer is complete")
    assert page.locator("article.assistant .text").last.inner_text() == AFTER.content
    assert page.locator("article.tool .text").inner_text() == "Paris"


def test_settings_reach_the_server(page):
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("Most tokens in an answer").fill("3")
    page.get_by_label("Think before answering").uncheck()
    page.get_by_role("button", name="Done").click()
    with page.expect_request("**/v1/chat/completions") as caught:
        ask(page, "Hello")
    body = caught.value.post_data_json
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert (body["temperature"], body["max_tokens"]) == (0.5, 3)
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    status(page, "The answer is complete")
    expect(page.locator(".rate")).to_contain_text("cut off at the token limit")


def test_a_refusal_is_told_and_the_question_is_kept(page):
    ask(page, "word " * 9000)
    status(page, "The answer failed")
    assert "prompt is too long" in page.get_by_role("alert").inner_text()
    assert page.get_by_label("Message").input_value().startswith("word word")


def test_a_server_with_keys_is_opened_by_one(browser, tmp_path):
    (tmp_path / "keys").write_text("a-key-of-this-test\n")
    directory = write_scripted_model(tmp_path / "model", [TALK], 4096)
    with serving(directory, security={"keys_file": str(tmp_path / "keys")}) as address:
        page = browser.new_page()
        page.goto(address)
        expect(page.get_by_text("This server asks for an API key")).to_be_visible()
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("API key").fill("a-key-of-this-test")
        page.get_by_role("button", name="Done").click()
        expect(page.get_by_text("This server asks for an API key")).to_be_hidden()
        expect(page.locator("#model")).to_have_text("glm")
        ask(page, "Hello")
        status(page, "The answer is complete")
        page.close()


def test_a_narrow_window_needs_no_sideways_scrolling(browser, url):
    page = browser.new_page(viewport={"width": 320, "height": 600})
    page.goto(url)
    ask(page, "Hello")
    status(page, "The answer is complete")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    page.get_by_role("button", name="Settings").click()
    assert page.get_by_role("dialog").evaluate("dialog => dialog.scrollWidth <= dialog.clientWidth")
    page.close()


def test_a_new_chat_forgets_the_old_one(page):
    ask(page, "Hello")
    status(page, "The answer is complete")
    page.get_by_role("button", name="New chat").click()
    assert page.locator("article").count() == 0
    with page.expect_request("**/v1/chat/completions") as caught:
        ask(page, "Again")
    assert caught.value.post_data_json["messages"] == [{"role": "user", "content": "Again"}]
    status(page, "The answer is complete")


def test_a_keyboard_and_a_screen_reader_are_enough(page):
    expect(page.get_by_label("Message")).to_be_focused()
    page.keyboard.type("Hello")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("there")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Send")).to_be_focused()
    page.keyboard.press("Enter")
    status(page, "The answer is complete")
    expect(page.get_by_label("Message")).to_be_focused()
    names = []
    for _ in range(3):
        page.keyboard.press("Shift+Tab")
        names.append(
            page.evaluate("document.activeElement.tagName + ' ' + document.activeElement.textContent.slice(0, 8)")
        )
    assert "SUMMARY Thinking" in names
    log = page.get_by_role("log", name="Conversation")
    assert log.get_attribute("aria-live") == "polite"
    assert log.locator("article.assistant").get_attribute("aria-busy") == "false"
    assert (
        page.locator("textarea, input, select").evaluate_all("fields => fields.filter(f => !f.labels.length).length")
        == 0
    )
    page.get_by_role("button", name="Settings").press("Enter")
    expect(page.get_by_role("dialog", name="Settings")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Settings")).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_contrast_in_both_schemes(browser, url, scheme):
    """At least 4.5 to 1, as WCAG 2.2 asks of text (1.4.3)."""
    page = browser.new_page(color_scheme=scheme)
    page.goto(url)
    value = "getComputedStyle(document.documentElement).getPropertyValue('--' + name)"
    colours = {
        name: page.evaluate(f"name => {value}", name)
        for name in ("ground", "sheet", "ink", "quiet", "accent", "on-accent", "mine", "code", "bad")
    }
    page.close()
    papers = ("ground", "sheet", "mine", "code")
    pairs = [(ink, paper) for ink in ("ink", "quiet") for paper in papers]
    pairs += [("accent", "ground"), ("bad", "ground"), ("on-accent", "accent")]
    for ink, paper in pairs:
        lighter, darker = sorted((luminance(colours[ink]), luminance(colours[paper])), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (ink, paper)
    assert (luminance(colours["ground"]) < 0.1) == (scheme == "dark")


def luminance(colour):
    """Relative luminance, WCAG 2.2."""
    parts = [int(colour.strip()[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_the_policy_lets_in_nothing_but_the_page(url):
    answer = httpx.get(url)
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.text == PAGE.read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(?!data:)", answer.text)
    assert "innerHTML" not in answer.text
    assert httpx.head(url).status_code == 200
