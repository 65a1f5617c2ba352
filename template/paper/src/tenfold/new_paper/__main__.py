"""``python -m tenfold.new_paper``."""

from tenfold.new_paper.cli import main

if __name__ == "__main__":
    main()
