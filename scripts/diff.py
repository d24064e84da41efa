"""The same as the command `genexp-diff`."""

from genexp.tools.diff import main

if __name__ == "__main__":
    main()
