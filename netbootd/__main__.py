"""``python -m netbootd`` is the same as ``netbootd``."""

from netbootd.cli.main import main

if __name__ == "__main__":
    main()
