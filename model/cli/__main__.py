"""`python -m model.cli`: the command without its installation."""

from . import main

if __name__ == "__main__":
    main()
