"""The same as the command `genexp-evaluate`."""

from genexp.cli.evaluate import main

if __name__ == "__main__":  # a process that reads pictures imports this file too
    main()
