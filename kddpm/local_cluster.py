"""`python -m kddpm.local_cluster`: runs the command line of `kddpm.distribution.local_cluster`."""

from kddpm.distribution.local_cluster import main

if __name__ == "__main__":
    main()
