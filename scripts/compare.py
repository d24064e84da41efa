"""Command `genexp-compare` as a script."""

from genexp.cli.compare import main

if __name__ == "__main__":
    main()
