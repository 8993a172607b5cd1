"""The program that is compiled: `minoots`."""

from edgenode.__main__ import main

if __name__ == "__main__":
    main()
