"""Files that generate without kddpm: `.tflite` and SavedModel. Uses `sampling`, `networks` and what is below.

Begin with `export`; `signatures` is the contract with clients, `description` the side file, `litert` the conversion,
`packing` the way to smaller files, `parity` the comparison with Keras.
"""
