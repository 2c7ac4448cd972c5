"""The command line that every main shares: flags, overrides, and the one place where it ends.

def main(argv):
    args, overrides = commandline.parse("Train a model.", argv=argv)
    from scorediff.experiment import train  # only now: --help and a typo answer at once
    ...

if __name__ == "__main__":
    commandline.run(main)
"""

import argparse
import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from scorediff.errors import StorageError, UserError
from scorediff.fields import nearest
from scorediff.memory import keep_memory

BUG, INTERRUPTED = 70, 130
_OVERRIDE = "--config."
_FLAGS = {
    "config": {"metavar": "FILE[:VARIANT]", "help": "a config file, or a run's config.json"},
    "workdir": {"metavar": "FOLDER", "help": "the folder of the run"},
}
_TRUST = {
    "metavar": "PACKAGE",
    "help": "a package of yours that the config may name; may be repeated",
}
_EPILOG = (
    "Every field of the config can be overridden: --config.train.steps=1e3, "
    "--config.solver.eta=0.5, --config.denoiser.process=VPCosine"
)
_ADVICE = {
    errno.ENOSPC: "make room and run the same command again",
    errno.EDQUOT: "make room and run the same command again",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose a folder that you may use, or change its permissions",
    errno.EPERM: "choose a folder that you may use, or change its permissions",
}


class _Parser(argparse.ArgumentParser):
    """argparse whose complaints are UserErrors: one line instead of the usage and a line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists the flags)")


def parse(
    description: str,
    add_flags: Callable[[argparse.ArgumentParser], object] | None = None,
    argv: Sequence[str] | None = None,
    *,
    needs: Sequence[str] = ("config", "workdir"),
    takes: Sequence[str] = (),
) -> tuple[argparse.Namespace, list[str]]:
    """The flags of a main, and the "--config.path=value" overrides in their order.

    `needs` and `takes` say which of --config and --workdir must and may be given; with --config
    come the overrides and `trust`, packages beside scorediff and optax that the config may name.
    `add_flags(parser)` adds the main's own flags. Raises UserError for a flag that does not exist,
    naming the nearest; --help prints and exits.
    """
    parser = _Parser(prog=_program(), description=description, allow_abbrev=False)
    for name in [*needs, *takes]:
        parser.add_argument(f"--{name}", **_FLAGS[name])
    with_config = "config" in (*needs, *takes)
    if with_config:
        parser.add_argument("--trust", action="append", default=[], **_TRUST)
        parser.epilog = _EPILOG
    if add_flags:
        add_flags(parser)
    args, rest = parser.parse_known_args(argv)
    _check_overrides(parser, rest, with_config)
    for name in needs:  # looked at last: a mistyped --config is an unknown flag, not a missing one
        if not getattr(args, name):
            parser.error(f"--{name}={_FLAGS[name]['metavar']} is missing")
    return args, rest


def _program() -> str:
    """How the program was started: python -m experiments.train, not train.py."""
    started = getattr(sys.modules.get("__main__"), "__spec__", None)
    return f"python -m {started.name.removesuffix('.__main__')}" if started else sys.argv[0]


def _check_overrides(parser: argparse.ArgumentParser, rest: list[str], with_config: bool) -> None:
    flags = [f for action in parser._actions for f in action.option_strings if f.startswith("--")]
    for item in rest:
        name, equals, _ = item.partition("=")
        if with_config and item.startswith(_OVERRIDE):
            if not equals:
                raise UserError(f"{name}: write {name}=VALUE, with the equals sign")
        elif item.startswith("-"):
            raise UserError(f"unknown flag {name}" + _suggestion(name, flags))
        else:
            raise UserError(f"unexpected argument {item!r}; flags are written --flag=VALUE")


def _suggestion(name: str, flags: list[str]) -> str:
    head, dot, tail = name.partition(".")
    close = nearest(head, flags)
    return f"; did you mean {close}{dot}{tail}?" if close else "; --help lists the flags"


def run(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> NoReturn:
    """Calls main(argv) and ends the process: the one place where mistakes become exit codes.

    A UserError is one line and its own code, an interrupt 130, a disk that is full or cannot be
    written 74, and any other exception a traceback and 70: a bug of ours.
    """
    keep_memory()
    try:
        code = main(sys.argv[1:] if argv is None else argv) or 0
        sys.stdout.flush()  # a full disk behind stdout shows here
    except UserError as error:
        code = _complain(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    except Exception as error:
        code = _explain(error)
    _leave(code)


def _explain(error: Exception) -> int:
    """What the disk refused as one line; anything else with its traceback."""
    if not isinstance(error, OSError) or error.errno not in _ADVICE:
        traceback.print_exc()
        return BUG
    where = f"{error.filename}: " if error.filename else ""
    return _complain(StorageError(f"{where}{error.strerror}; {_ADVICE[error.errno]}"))


def _leave(code: int) -> NoReturn:
    """After a failure the process ends at once.

    An ordinary exit would join the threads of libraries that may be waiting for a disk or for each
    other: measured to hang for 300 s, and to lose the checkpoint being written. `fit` has waited
    for that one by then.
    """
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    sys.stderr.flush()
    if code:
        os._exit(code)
    sys.exit(0)


def _complain(error: UserError) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return error.code
