"""Files that generate without kddpm: `.tflite` and SavedModel. Uses `sampling`, `networks` and what they use.

Begin with `export`; `signatures` is the contract with clients, `description` the side file, `litert` the conversion,
`packing` makes files smaller, `gpu` knows what GPUs take, `parity` compares files with Keras.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, ["description", "export", "gpu", "litert", "packing", "parity", "signatures"]
)

PRECISIONS = ("float32", "float16", "int8")  # of a file's weights; known without TensorFlow
TARGETS = ("cpu", "gpu")
# Of a file, in the order of the contract.
SIGNATURES = ("generate", "start", "step", "finish", "denoise", "noise")
