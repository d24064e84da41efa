"""The same as the command `genexp-sample`."""

from genexp.cli.sample import main

if __name__ == "__main__":  # a process that reads pictures imports this file too
    main()
