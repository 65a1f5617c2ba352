"""``python -m tenfold.pmt_iqa``."""

from tenfold.pmt_iqa.cli import main

if __name__ == "__main__":
    main()
