"""The same as the command `genexp-evaluate`."""

from genexp.tools.evaluate import main

main()
