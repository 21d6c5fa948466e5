"""`python -m effimini.cli`, which torchrun can start."""

from effimini.cli import main

if __name__ == "__main__":
    main()
