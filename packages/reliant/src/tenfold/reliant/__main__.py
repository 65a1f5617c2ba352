"""``python -m tenfold.reliant``."""

from tenfold.reliant.cli import main

if __name__ == "__main__":
    main()
