import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmcore.data.builders.problems import ProblemFields, boxed, gym_documents, problem_documents, same_answer
from glmcore.data.documents import Document
from glmcore.data.encode import encode_documents
from glmcore.data.reasoning import is_held_out
from glmcore.errors import DataError
from glmcore.tokenizer import train_tokenizer

QUESTIONS = [f"What is {at} + 1?" for at in range(400)]
KEPT = [question for question in QUESTIONS if not is_held_out(question)]


def build(*records, **options):
    rejects = []
    placed = [(f"p{at}", record) for at, record in enumerate(records)]
    documents = list(problem_documents(placed, on_reject=lambda *told: rejects.append(told), **options))
    return documents, rejects


def answer_of(document):
    message = document.messages[1]
    return message["reasoning_content"], message["content"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"reasoning": "Add one.", "solution": "It is 2.", "answer": "2"}, ("Add one.", "It is 2.")),
        ({"solution": "<think>\nAdd.\n</think>\n\nIt is 2."}, ("Add.", "It is 2.")),
        ({"answer": "2"}, ("", "2")),
        ({"answer": 2.5}, ("", "2.5")),
        ({"answer": "Add one.\n#### 2"}, ("Add one.", "2")),
        ({"solution": "Add.\n#### 1,000", "answer": "x #### 1000.0"}, ("Add.", "1,000")),
        ({"solution": "so \\boxed{\\frac{1}{2}}", "answer": "\\frac{1}{2}"}, ("", "so \\boxed{\\frac{1}{2}}")),
        ({"solution": "a proof", "answer": "another proof"}, ("", "a proof")),
    ],
)
def test_records_of_many_forms_are_read(fields, expected):
    [document], rejects = build({"question": KEPT[0], **fields}, answer_mark="####")
    assert rejects == []
    assert document.messages[0] == {"role": "user", "content": KEPT[0]}
    assert answer_of(document) == expected


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"question": None}, "question 'question' is missing"),
        ({"question": ["x"]}, "no text"),
        ({}, "no 'solution' and no 'answer'"),
        ({"solution": "<think>never ends"}, "thinking that does not end"),
        ({"solution": "<think>only thinking</think> "}, "an empty solution"),
        ({"solution": "so \\boxed{3}", "answer": "2"}, "'3' is not the right one"),
        ({"solution": "3", "answer": "2"}, "'3' is not the right one"),
        ({"solution": 3, "answer": 2}, "'3' is not the right one"),
        (
            {"question": "How many?", "solution": "4", "answer": "5", "metadata": {"source_dataset": "count_bits"}},
            "the verifier of its task",
        ),
    ],
)
def test_records_without_a_right_answer_are_left_out_with_the_reason(fields, reason):
    documents, [(place, told)] = build({"question": KEPT[0], **fields})
    assert documents == []
    assert place == "p0"
    assert reason in told


def test_held_out_questions_stay_out_of_training():
    documents, rejects = build(*({"question": question, "answer": "1"} for question in QUESTIONS))
    assert [document.messages[0]["content"] for document in documents] == KEPT
    assert {reason for _, reason in rejects} == {"held out for evaluation"}
    documents, rejects = build(*({"question": question, "answer": "1"} for question in QUESTIONS), drop_held_out=False)
    assert len(documents) == 400


def test_a_share_of_the_problems_keeps_its_steps():
    records = [{"question": question, "reasoning": "steps", "solution": "1"} for question in KEPT]
    documents, _ = build(*records, thinking_share=0.3)
    share = sum(bool(answer_of(document)[0]) for document in documents) / len(documents)
    assert 0.2 < share < 0.4
    again, _ = build(*records[::-1], thinking_share=0.3)
    assert {d.messages[0]["content"]: answer_of(d) for d in again} == {
        d.messages[0]["content"]: answer_of(d) for d in documents
    }
    assert all(not answer_of(document)[0] for document in build(*records, thinking_share=0.0)[0])
    assert all(answer_of(document)[0] for document in build(*records, thinking_share=1.0)[0])


def test_fields_have_any_names():
    fields = ProblemFields(question="problem.text", reasoning="trace", solution="final", answer=None)
    [document], _ = build({"problem": {"text": KEPT[0]}, "trace": "steps", "final": "1", "answer": "2"}, fields=fields)
    assert answer_of(document) == ("steps", "1")


def test_a_task_with_a_solver_has_steps_and_another_its_known_answer():
    rejects = []
    documents = list(gym_documents("gcd", 5, 0, on_reject=lambda *told: rejects.append(told)))
    assert len(documents) == 5
    assert all(answer_of(document)[0] for document in documents)
    documents = list(
        gym_documents("basic_arithmetic", 5, 0, options={"max_digits": 1}, on_reject=lambda *told: rejects.append(told))
    )
    assert [document.id for document in documents] == [
        f"basic_arithmetic/0/{document.id.split('/')[-1]}" for document in documents
    ]
    assert all(not answer_of(document)[0] and answer_of(document)[1] for document in documents)
    assert rejects == []
    assert not list(gym_documents("rush_hour", 2, 0, on_reject=lambda *told: rejects.append(told)))
    assert [reason for _, reason in rejects] == ["no answer that the task's verifier accepts"] * 2


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("no_such_task", None, "has no task 'no_such_task'"),
        ("gcd", {"min_numbers": -1}, "does not take"),
        ("gcd", {"nonsense": 1}, "does not take"),
    ],
)
def test_unknown_tasks_and_options_are_named(task, options, message):
    with pytest.raises(DataError, match=message):
        list(gym_documents(task, 1, 0, options=options, on_reject=lambda *_: None))


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("\\boxed{1} then \\boxed{ {2} }", " {2} "),
        ("<|begin_of_box|>x<|end_of_box|>", "x"),
        ("\\boxed{1} \\boxed{never ends", "1"),
        ("no box", None),
    ],
)
def test_the_last_box_that_ends_counts(text, content):
    assert boxed(text) == content


@given(text=st.text(alphabet="\\boxed{}<|begin_of_box|>1", max_size=100))
def test_no_text_makes_the_box_fail(text):
    found = boxed(text)
    assert found is None or found in text


def test_answers_are_compared_as_numbers_and_text():
    assert same_answer(" $1,000. ", "1000")
    assert same_answer("0.50", ".5")
    assert same_answer("Paris.", "paris")
    assert not same_answer("1", "10")
    assert not same_answer("nan", "inf")


def test_only_the_answer_is_learned():
    tokenizer = train_tokenizer(["What is it? Add one and two."] * 20, 300, progress=False)
    [document], _ = build({"question": KEPT[0], "reasoning": "Add one.", "solution": "2"})
    [encoded] = encode_documents(tokenizer, [document])
    learned = tokenizer.decode(encoded.ids[encoded.loss_mask == 1])
    assert learned == "\n<think>Add one.</think>\n2<|endoftext|>"
    assert isinstance(document, Document)
