"""The same as the command `genexp-compare`."""

from genexp.cli.compare import main

if __name__ == "__main__":
    main()
