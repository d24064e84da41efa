"""Command `genexp-sample` as a script."""

from genexp.cli.sample import main

if __name__ == "__main__":  # data-loading worker processes import this file too
    main()
