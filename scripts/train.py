"""Command `genexp` as a script."""

from genexp.train import main

if __name__ == "__main__":  # data-loading worker processes import this file too
    main()
