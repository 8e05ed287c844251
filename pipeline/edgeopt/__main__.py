"""``python -m edgeopt`` is the command ``edgeopt``."""

from edgeopt.cli import main

if __name__ == "__main__":
    main()
