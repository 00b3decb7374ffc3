"""Generate pictures from an exported .tflite, with LiteRT or tflite-runtime, NumPy and Pillow alone.

    python generate.py model.tflite --seeds=0-15 --out=grid.png --threads=4
    python generate.py model.tflite --num_steps=10
    python generate.py model.tflite --variations=photo.jpg --strength=0.5
    python generate.py model.tflite --inpaint=photo.jpg --mask=mask.png

The random numbers, the schedule and the sampler are inside the file. Picture k depends only on seed k (and label k).
Another number of steps, variations and inpainting need a file with the signatures denoise and noise, of the sampler
ancestral or ddim. This script needs the other files of this folder beside it.
"""

import os
import sys
import types

if __name__ == "__main__":
    # The files beside a script are no package; here they are one, wherever they were copied to.
    edge = types.ModuleType("edge")
    edge.__path__ = [os.path.dirname(os.path.abspath(__file__))]
    sys.modules["edge"] = edge

    from edge.command import main

    main()
