"""`hspace` and `python -m hspace`. From the first import on a signal is one line, not a traceback."""

from __future__ import annotations

from . import interrupts


def main() -> None:
    """Runs the command line."""
    interrupts.install()
    from .cli import main as run

    run()


if __name__ == "__main__":
    main()
