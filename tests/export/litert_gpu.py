"""Runs signatures with LiteRT's own WebGPU accelerator: `python litert_gpu.py MODEL.tflite CALLS.npz OUTPUTS.npz`.

CALLS holds arrays NUMBER.SIGNATURE.INPUT, OUTPUTS then NUMBER.SIGNATURE.OUTPUT and `fully`: whether no operator is left
to the CPU. Ends with status 3 where there is no adapter. A process of its own, because the delegate logs to stderr.
"""

import sys

import numpy as np
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.gpu_options import GpuOptions
from ai_edge_litert.hardware_accelerator import HardwareAccelerator
from ai_edge_litert.options import Options


def run(model, name, inputs):
    given = {key: model.create_input_buffer_by_name(name, key) for key in inputs}
    for key, buffer in given.items():
        buffer.write(inputs[key])
    made = {key: model.create_output_buffer_by_name(name, key) for key in model.get_output_tensor_details(name)}
    model.run_by_name(name, given, made)
    details = model.get_output_tensor_details(name)
    return {
        key: buffer.read(int(np.prod(details[key]["shape"])), np.dtype(details[key]["dtype"]).type)
        for key, buffer in made.items()
    }


def main():
    path, calls, outputs = sys.argv[1:]
    accelerators = HardwareAccelerator.GPU | HardwareAccelerator.CPU
    options = Options(hardware_accelerators=accelerators, gpu_options=GpuOptions(enforce_f32=True))
    try:
        model = CompiledModel.from_file(path, options=options)
    except RuntimeError as error:
        sys.exit(3 if "delegate" not in str(error).lower() else str(error))
    found = {"fully": np.array(model.is_fully_accelerated())}
    arrays = np.load(calls)
    for call in dict.fromkeys(key.rpartition(".")[0] for key in arrays):
        inputs = {key.rpartition(".")[2]: arrays[key] for key in arrays if key.rpartition(".")[0] == call}
        for key, value in run(model, call.split(".")[1], inputs).items():
            found[f"{call}.{key}"] = value
    np.savez(outputs, **found)


main()
