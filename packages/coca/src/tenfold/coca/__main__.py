"""``python -m tenfold.coca``."""

from tenfold.coca.cli import main

if __name__ == "__main__":
    main()
