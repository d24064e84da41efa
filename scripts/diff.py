"""Command `genexp-diff` as a script."""

from genexp.cli.diff import main

if __name__ == "__main__":
    main()
