import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmcore.data.reasoning import Problem
from glmcore.errors import ConfigError
from glmcore.rl.tasks import FixedOrder


def tasks(count):
    return [Problem(f"t/{i}", "t", f"question {i}", str(i), {}) for i in range(count)]


@given(size=st.integers(1, 20), counts=st.lists(st.integers(0, 30), max_size=8), cut=st.integers(0, 8))
def test_the_fixed_order_goes_round_and_a_restored_state_goes_on_where_it_was(size, counts, cut):
    pool, source = tasks(size), FixedOrder(tasks(size))
    given_out = [task for count in counts[:cut] for task in source.next(count)]
    state = source.state_dict()
    rest = [task for count in counts[cut:] for task in source.next(count)]
    total = sum(counts)
    assert given_out + rest == [pool[i % size] for i in range(total)]
    again = FixedOrder(tasks(size))
    again.load_state_dict(state)
    assert [task for count in counts[cut:] for task in again.next(count)] == rest


def test_a_task_is_found_by_its_id_and_no_tasks_are_an_error():
    source = FixedOrder(tasks(3))
    assert source.task("t/2").answer == "2"
    with pytest.raises(ConfigError, match="no tasks"):
        FixedOrder([])
