"""``python -m tenfold.tinymim``."""

from tenfold.tinymim.cli import main

if __name__ == "__main__":
    main()
