"""Check on this machine what an exported file paints: python -m export.verify model.tflite

It compares the noise and the pictures with those of Keras that NAME.json holds, and prints them with the runtime, the
latency and the peak memory: what to send when something looks wrong. It needs what edge/ needs, nothing of kddpm, and
ends with status 1 where noise or pictures are not right.
"""

from __future__ import annotations

import sys

from .edge import flags

_PROGRAM = "export.verify"


def main(arguments: list[str] | None = None) -> None:
    """Parse the flags, compare, and end with status 1 if the file paints something else."""
    parser = flags.Parser(prog=_PROGRAM, description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("model", help="NAME.tflite, with NAME.json beside it")
    parser.add_argument("--out", help="NAME.png: what was expected, what came, and the difference")
    parser.add_argument("--threads", default="2", help="of LiteRT, 1 to 256")
    parser.add_argument("--no-xnnpack", action="store_false", dest="xnnpack", help="the plain kernels")
    given = parser.parse_args(arguments)
    with flags.ending_in_a_line(_PROGRAM):
        model, threads = flags.path("MODEL", given.model), flags.threads(given.threads)
        out = None if given.out is None else flags.output(given.out, or_folder=False)
        # Imported here, so that a wrong flag, and Ctrl-C, are answered at once.
        from .certificate import certificate
        from .edge.generator import Generator
        from .edge.pictures import grid, save

        rows, is_right, pictures = certificate(Generator(model, threads, given.xnnpack))
        if out is not None:
            save(out, grid(pictures, columns=len(pictures) // 3))
        for name, text in rows.items():
            print(f"{name:<12}{text}")
    sys.exit(0 if is_right else 1)


if __name__ == "__main__":
    main()
