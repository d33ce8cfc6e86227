import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmcore.chat import Message, parse_reply
from glmcore.data.reasoning import TASKS, generate_problems, is_held_out, score, solve, to_messages, to_text
from glmcore.envs.reasoning import ReasoningEnv
from glmcore.errors import DataError, RequestError

ALL = {task: list(generate_problems(task, 60, seed=5, held_out=False)) for task in TASKS}


@pytest.mark.parametrize("task", TASKS)
def test_the_verifier_accepts_our_solutions_and_refuses_others(task):
    for problem in ALL[task]:
        solution = solve(problem)
        assert solution is not None, problem.question
        assert solution.answer == problem.answer
        assert solution.steps
        assert score(problem, solution.answer + "1") < 1.0
        assert score(problem, "") < 1.0
        assert solution.answer in to_text(problem, solution)
        assert to_messages(problem.question, solution)[1]["reasoning_content"] == solution.steps


@pytest.mark.parametrize("task", TASKS)
def test_held_out_questions_are_in_no_training_set(task):
    held = {problem.question for problem in generate_problems(task, 60, seed=9, held_out=True)}
    assert held
    assert all(is_held_out(question) for question in held)
    assert not held & {problem.question for problem in ALL[task]}
    assert list(generate_problems(task, 60, seed=5, held_out=False)) == ALL[task]


def test_a_task_that_runs_out_of_questions_gives_fewer():
    problems = list(generate_problems("count_bits", 10_000, seed=0, held_out=True))
    assert 100 < len(problems) < 1_000
    assert len({problem.question for problem in problems}) == len(problems)


@settings(deadline=None, max_examples=150)
@given(answer=st.text(max_size=500), task=st.sampled_from(list(TASKS)))
def test_scoring_never_raises(answer, task):
    assert 0.0 <= score(ALL[task][0], answer) <= 1.0


def test_an_unknown_task_is_named():
    with pytest.raises(DataError, match="unknown reasoning task 'sudoku'"):
        list(generate_problems("sudoku", 1, seed=0, held_out=False))


def reward(reply: str) -> float:
    problem = ALL["chain_sum"][0]

    async def episode() -> float:
        environment = ReasoningEnv()
        [message] = (await environment.reset(problem)).messages
        assert message == {"role": "user", "content": problem.question}
        result = await environment.step(parse_reply(reply.replace("ANSWER", problem.answer)))
        assert result.done
        return result.reward

    return asyncio.run(episode())


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("\n<think>steps</think>\nANSWER", 1.0),
        ("\n<think></think>\nANSWER", 1.0),
        ("\n<think>ANSWER", 0.0),
        ("\n<think>steps</think>\nANSWER, I think", 0.0),
        ("\n<think>steps</think>\n", 0.0),
        ("", 0.0),
    ],
)
def test_only_the_exact_answer_after_the_thinking_is_rewarded(reply, expected):
    assert reward(reply) == expected


def test_a_step_without_a_task_is_refused():
    with pytest.raises(RequestError, match="reset the environment"):
        asyncio.run(ReasoningEnv().step(Message("", "")))


def test_tasks_take_turns_and_splits_do_not_mix():
    train = ReasoningEnv.tasks("train", ["chain_sum", "spell_backward"], 20, seed=0)
    assert [problem.task for problem in train[:4]] == ["chain_sum", "spell_backward"] * 2
    held = ReasoningEnv.tasks("held_out", ["chain_sum"], 20, seed=0)
    assert not {problem.question for problem in held} & {problem.question for problem in train}
