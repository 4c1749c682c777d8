"""`python -m lipdet` is the `lipdet` command."""

from lipdet.cli import main

if __name__ == "__main__":
    main()
