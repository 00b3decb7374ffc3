"""Train a diffusion model on images: `python train.py --help` says how."""

from kddpm.scripts.train import main

if __name__ == "__main__":
    main()
