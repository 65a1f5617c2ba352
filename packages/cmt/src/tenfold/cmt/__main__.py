"""``python -m tenfold.cmt``."""

from tenfold.cmt.cli import main

if __name__ == "__main__":
    main()
