"""``python -m dmax`` is the ``dmax`` command."""

from dmax.cli import main

if __name__ == "__main__":
    main()
