"""`python -m spr` is the command `spr`."""

from spr.cli import main

if __name__ == "__main__":
    main()
