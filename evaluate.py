"""Measure a trained run: `python evaluate.py --help` says how."""

from kddpm.scripts.evaluate import main

if __name__ == "__main__":
    main()
