"""`python -m fmnist_keras3` is `fmnist`."""

from fmnist_keras3.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
