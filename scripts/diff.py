"""The same as the command `genexp-diff`."""

from genexp.cli.diff import main

if __name__ == "__main__":
    main()
