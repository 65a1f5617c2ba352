"""``python -m tenfold.drum_gpt``."""

from tenfold.drum_gpt.cli import main

if __name__ == "__main__":
    main()
