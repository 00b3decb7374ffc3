"""Files that generate without kddpm: `.tflite` and SavedModel. Uses `sampling`, `networks` and what they use.

Begin with `export`; `signatures` is the contract with clients, `description` the side file, `litert` the conversion,
`packing` makes files smaller, `parity` compares them with Keras.
"""

PRECISIONS = ("float32", "float16", "int8")  # of a file's weights; known without TensorFlow
