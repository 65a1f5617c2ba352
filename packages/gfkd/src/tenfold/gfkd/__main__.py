"""``python -m tenfold.gfkd``."""

from tenfold.gfkd.cli import main

if __name__ == "__main__":
    main()
