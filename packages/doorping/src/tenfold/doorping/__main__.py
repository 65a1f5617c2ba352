"""``python -m tenfold.doorping``."""

from tenfold.doorping.cli import main

if __name__ == "__main__":
    main()
