"""Models spread over ranks train as in one process."""

import numpy as np
from distributed import run_ranks
from sharded import train


def test_data_ranks_with_one_row_each_give_the_bits_of_one_process():
    ranks = run_ranks(2, train, {"data": 2})
    alone = train(0, {})

    assert ranks[0][0] == ranks[1][0]
    print(ranks[0][0], alone[0])
    for name, weight in alone[1].items():
        np.testing.assert_array_equal(ranks[0][1][name], weight, err_msg=name)
