"""`python -m kddpm.doctor`: runs the command of `kddpm.scripts.doctor`."""

from kddpm.scripts.doctor import main

if __name__ == "__main__":
    main()
