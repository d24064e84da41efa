"""The same as the command `genexp`."""

from genexp.train import main

main()
