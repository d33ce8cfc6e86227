import asyncio
import os
import shutil

import pytest

from glmcore.envs.sandbox.config import SandboxConfig
from glmcore.envs.sandbox.pool import SandboxPool
from glmcore.envs.verify.choice import extract_choice, pose_choice, verify_choice
from glmcore.envs.verify.code import AssertionTest, CodeVerifier, StreamTest, extract_code
from glmcore.envs.verify.math import MathVerifier
from glmcore.errors import DataError

SHUT_IN = shutil.which("bwrap") is not None and os.geteuid() == 0


@pytest.fixture(scope="module")
def maths():
    with MathVerifier(timeout_s=2) as verifier:
        yield verifier


@pytest.fixture(scope="module")
def code():
    with SandboxPool(SandboxConfig(kind="bubblewrap" if SHUT_IN else "subprocess")) as pool:
        yield CodeVerifier(pool)


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        ("42", "The answer is 42."),
        ("\\frac{1}{2}", "so $x=0.5$, that is \\boxed{\\frac{2}{4}}"),
        ("x^2+1", "\\boxed{1+x^2}"),
        ("\\{1,2\\}", "\\boxed{\\{2,1\\}}"),
        ("1,234", "\\boxed{1234}"),
        ("8", "first \\boxed{7}, no: \\boxed{8}"),
        ("$\\sqrt{2}/2$", "$$\\boxed{\\frac{1}{\\sqrt 2}}$$"),
    ],
)
def test_answers_of_equal_value_are_right_whatever_their_form(maths, answer, reply):
    assert maths.verify(answer, reply).right


@pytest.mark.parametrize(
    ("answer", "reply"), [("42", "\\boxed{43}"), ("7", "\\boxed{7} or \\boxed{8}"), ("3", "no idea")]
)
def test_other_values_and_no_value_are_wrong(maths, answer, reply):
    verdict = maths.verify(answer, reply)
    assert verdict.score == 0.0
    assert verdict.reason in ("another value", "no answer was found")


def test_a_comparison_that_does_not_end_is_killed_and_the_next_one_works(maths):
    verdicts = [maths.verify("3", "\\boxed{9^{9^{9^{9}}}}"), maths.verify("3", "\\boxed{3}")]
    assert [verdict.score for verdict in verdicts] == [0.0, 1.0]
    assert verdicts[0].reason == "could not be compared within 2 s"


def test_many_tasks_share_the_workers(maths):
    async def judge() -> list[bool]:
        verdicts = await asyncio.gather(*(maths.verify_async(str(n), f"\\boxed{{{n % 3}}}") for n in range(6)))
        return [verdict.right for verdict in verdicts]

    assert asyncio.run(judge()) == [True, True, True, False, False, False]


def test_the_place_of_the_right_option_follows_the_seed_alone():
    options = ["red", "green", "blue", "white"]
    posed = [pose_choice("Which?", options, 2, seed) for seed in range(40)]
    assert pose_choice("Which?", options, 2, 7) == posed[7]
    assert {choice.letter for choice in posed} == set("ABCD")
    for choice in posed:
        assert f"{choice.letter}) blue\n" in choice.text
    with pytest.raises(DataError, match="2 to 26"):
        pose_choice("Which?", ["one"], 0, 0)
    with pytest.raises(DataError, match="number 4 of 4"):
        pose_choice("Which?", options, 4, 0)


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("Answer: B", "B"),
        ("A is wrong, so the answer is (C).", "C"),
        ("**Answer:** D", "D"),
        ("I first thought the answer is A. No.\nThe answer is B", "B"),
        ("the answer is A but \\boxed{\\text{B}}", "B"),
        ("Reasons.\nC", "C"),
        ("B) because it is so", "B"),
        ("The correct option is **A**", "A"),
        ("A long story without an end", None),
        ("Answer: Z", None),
        ("I do not know", None),
    ],
)
def test_the_letter_that_a_reply_settles_on(reply, letter):
    assert extract_choice(reply, 4) == letter
    assert verify_choice("B", reply, 4).right == (letter == "B")


def test_the_last_block_of_the_language_is_the_program():
    reply = "```python\nold\n```\ntext\n```py\nnew\n```\n```bash\nls\n```\n"
    assert extract_code(reply) == "new\n"
    assert extract_code(reply, "bash") == "ls\n"
    assert extract_code("```\nplain\n```") == "plain\n"
    assert extract_code("x = 1") == "x = 1"


def test_programs_are_judged_by_what_they_print(code):
    tests = [StreamTest("2", "4"), StreamTest("5", "10 \n")]
    assert code.verify_streams("print(int(input()) * 2)", tests).right
    assert code.verify_streams("read x; echo $((x * 2))", tests, "bash").right
    assert code.verify_streams("print(4)", tests).reason == "test 2 of 2: another output"
    assert code.verify_streams("1 / 0", tests).reason == "test 1 of 2: ZeroDivisionError: division by zero"


DOUBLE = AssertionTest(
    "double", "def check(candidate):\n    assert candidate(2) == 4\n    assert double([1]) == [1, 1]\n"
)


@pytest.mark.parametrize(
    "test",
    [
        DOUBLE,
        AssertionTest("double", "x = 1\nfor _ in range(3):\n    x = double(x)\nassert x == 8"),
        AssertionTest("double", "assert abs(double(0.1) - half(0.4)) < 1e-9", setup="def half(x):\n    return x / 2"),
        AssertionTest("double", "try:\n    double(None)\n    raise AssertionError\nexcept TypeError:\n    pass"),
    ],
)
def test_functions_are_judged_by_assertions(code, test):
    assert code.verify_assertions("def double(x):\n    return x + x", test).right
    assert not code.verify_assertions("def double(x):\n    return 5", test).right


@pytest.mark.parametrize(
    "cheat",
    [
        "import os\nos._exit(0)",
        "raise SystemExit(0)",
        "class Any:\n    def __eq__(self, other):\n        return True\ndef double(x):\n    return Any()",
        "import builtins\nbuiltins.AssertionError = Exception\ndef double(x):\n    return 0",
        'import sys\nprint(\'{"calls": [], "failed": null}\')\ndef double(x):\n    return 0',
        "def double(x):\n    open('answers.out', 'w').write('{')\n    return 0",
        "def other(x):\n    return x",
    ],
)
def test_a_program_cannot_talk_its_judge_into_a_right_answer(code, cheat):
    assert code.verify_assertions(cheat, DOUBLE).score == 0.0
