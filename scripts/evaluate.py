"""Command `genexp-evaluate` as a script."""

from genexp.cli.evaluate import main

if __name__ == "__main__":  # data-loading worker processes import this file too
    main()
