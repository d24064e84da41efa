"""The same as the command `genexp-sample`."""

from genexp.tools.sample import main

main()
