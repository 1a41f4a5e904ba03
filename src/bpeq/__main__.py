"""`python -m bpeq` is the command `bpeq`."""

from bpeq.cli import script

if __name__ == "__main__":
    script()
