"""The one way a command that trains ends its process.

After a failure the process ends by os._exit. An ordinary exit would join the threads of libraries
that may be waiting for a disk or for each other; that was measured to hang for 300 s and to lose
the checkpoint being written. `fit` has by then waited for it.
"""

import logging
import os
import sys
import traceback
from collections.abc import Callable

from scorediff.errors import UserError

BUG, INTERRUPTED = 70, 130


def leave_after(main: Callable[[], object]) -> None:
    """Runs main(). A UserError becomes one line and its exit code, anything else a traceback.

    Returns only on success. Codes: those of scorediff.errors, 130 for Ctrl-C, 70 for a bug of ours.
    """
    sys.unraisablehook = _unraisable
    logging.getLogger("asyncio").setLevel(
        logging.CRITICAL
    )  # tasks of a read that failed, and was told
    try:
        main()
    except UserError as error:
        _leave(error.code, f"error: {error}\n")
    except KeyboardInterrupt:
        _leave(INTERRUPTED, "interrupted\n")
    except Exception:
        _leave(BUG, traceback.format_exc())


def _unraisable(found) -> None:
    """After a failed write, callbacks of tensorstore find Orbax's event loop closed: no news."""
    if str(found.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(found)


def _leave(code: int, message: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(message)
    sys.stderr.flush()
    os._exit(code)
