"""Command `genexp-export` as a script."""

from genexp.cli.export import main

if __name__ == "__main__":
    main()
