"""Several devices: which there are, what workers say to each other, how replicas share rows. Uses `base`.

Begin with `strategies`.
"""

STRATEGIES = ("auto", "one", "mirrored", "multi_worker", "tpu")  # by name; known without TensorFlow
