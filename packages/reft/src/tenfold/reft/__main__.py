"""``python -m tenfold.reft``."""

from tenfold.reft.cli import main

if __name__ == "__main__":
    main()
