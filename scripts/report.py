"""Command `genexp-report` as a script."""

from genexp.cli.report import main

if __name__ == "__main__":
    main()
