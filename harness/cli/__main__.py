"""``python -m harness.cli``, as torchrun starts it."""

from harness.cli.start import main

if __name__ == "__main__":
    main()
