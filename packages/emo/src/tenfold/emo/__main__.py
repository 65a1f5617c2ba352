"""``python -m tenfold.emo``."""

from tenfold.emo.cli import main

if __name__ == "__main__":
    main()
