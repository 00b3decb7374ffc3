"""Distribution over devices: strategies, communication of workers, rows shared by replicas. Uses `base`.

Begin with `strategies`.
"""

STRATEGIES = ("auto", "one", "mirrored", "multi_worker", "tpu")  # names, available without TensorFlow
