"""A batch in parts, one a core, in processes of their own: the number of threads is set once in a process."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
import numpy as np
import tensorflow as tf
from kddpm.distribution import cores, replicas

from kddpm.base import settings
settings.cores = lambda: {cores}
one = tf.distribute.get_strategy()
before = cores.most_parts(64, one)
cores.divide_batches({rows})
found = {{"before": before, "threads": tf.config.threading.get_intra_op_parallelism_threads()}}
found["parts"] = [cores.equal_parts(rows, one) for rows in (64, 12, 9, 3)]
def shared(count):
    rows = replicas.SharedRows(one)
    traced = []
    def function(a, b, number):
        traced.append(a.shape[0])
        return a + number, (b * 2,)
    compiled = rows.compile(function)
    full = rows.full(count)
    a, b = np.arange(full * 2.0).reshape(full, 2), np.arange(full)
    sums, (doubled,) = compiled(rows.share(a), rows.share(b), tf.constant(1.0, tf.float64))
    return {{"full": full, "traced": sorted(traced), "right": bool(
        np.array_equal(rows.join(sums), a + 1) and np.array_equal(rows.join(doubled), b * 2)
        and rows.share(None) is None)}}
found["shared"] = [shared(count) for count in {counts}]
print(json.dumps(found))
"""


def found(**arguments):
    code = SCRIPT.format(**{"cores": 2, "rows": 64, "counts": [9], **arguments})
    return json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)


def test_two_cores_share_a_batch_and_also_few_rows():
    shared = [
        {"full": 9, "traced": [4, 5], "right": True},
        {"full": 3, "traced": [1, 2], "right": True},
        {"full": 1, "traced": [1], "right": True},
    ]
    assert found(counts=[9, 3, 1]) == {"before": 1, "threads": 1, "parts": [2, 2, 1, 1], "shared": shared}


@pytest.mark.parametrize("cores", [3, 8])
def test_any_number_of_rows_can_be_shared(cores):
    for count, shared in zip((21, 64), found(cores=cores, counts=[21, 64])["shared"], strict=True):
        assert {"full": count, "right": True}.items() <= shared.items()


@pytest.mark.parametrize("arguments", [{"rows": 7}, {"cores": 1}, {"cores": 9, "rows": 1000}])
def test_operations_keep_their_threads_where_parts_would_not_pay(arguments):
    by_tensorflow = found(**arguments)
    assert by_tensorflow["threads"] == 0 and by_tensorflow["parts"] == [1, 1, 1, 1]
    assert by_tensorflow["shared"] == [{"full": 9, "traced": [9], "right": True}]
