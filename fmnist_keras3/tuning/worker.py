"""A process that works on a study which is there: ``python -m fmnist_keras3.tuning.worker``.

`fmnist tune --workers` starts it. What it is to do comes as JSON on its standard input, since a
storage's URL may hold a password.
"""

from __future__ import annotations

import json
import sys

from fmnist_keras3 import runtime
from fmnist_keras3.ground.errors import EXIT_USER, UserError, exit_code, full_message
from fmnist_keras3.training.signals import terminable


def main() -> int:
    """Work, and return the exit code."""
    order = json.load(sys.stdin)
    try:
        with terminable():
            backend = runtime.prepare()
            runtime.import_keras_alone()
            from fmnist_keras3.tuning.study import open_study
            from fmnist_keras3.tuning.tune import run

            given = order["given"]
            run(*open_study(order["study"], order["storage"], given, (), {}, {}, backend))
    except UserError as error:
        print(full_message(error), file=sys.stderr)
        return EXIT_USER
    except KeyboardInterrupt as error:
        return exit_code(getattr(error, "signal", "SIGINT"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
