"""Generate pictures with a trained run, or edit pictures with it: `python sample.py --help` says how."""

from kddpm.scripts.sample import main

if __name__ == "__main__":
    main()
