"""Flags, overrides and exit codes, in this process and in real ones."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scorediff import commandline
from scorediff.errors import DivergedError, Preempted, StorageError, UserError

ROOT = Path(__file__).parents[1]
MAIN = """
import sys
from scorediff import commandline

def flags(parser):
    parser.add_argument("--count", type=int, default=3, help="how many")

def main(argv):
    args, overrides = commandline.parse("Do something.", flags, argv)
    print(args.config, args.workdir, args.trust, args.count, overrides)
    {body}

if __name__ == "__main__":
    try:
        commandline.run(main)
    finally:
        assert "jax" not in sys.modules, "importing jax makes --help slow"
"""


def start(tmp_path, *argv, body="", **options):
    (tmp_path / "tool.py").write_text(MAIN.format(body=body))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    command = [sys.executable, "-m", "tool", *argv]
    options = {"capture_output": True, "text": True, "env": environment, **options}
    return subprocess.run(command, check=False, timeout=60, **options)


def flags(parser):
    parser.add_argument("--count", type=int, default=3)


def parsed(*argv, **options):
    return commandline.parse("Do something.", flags, argv, **options)


def refused(*argv, **options):
    with pytest.raises(UserError) as caught:
        parsed(*argv, **options)
    assert caught.value.code == 2
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_flags_and_overrides_in_their_order():
    argv = ["--config=a.py:tiny", "--config.b.c=1", "--trust=x", "--workdir", "w"]
    argv += ["--config.b.c=2", "--trust=y.z", "--config.d[0]=a b", "--count=5"]
    args, overrides = parsed(*argv)
    assert (args.config, args.workdir, args.count) == ("a.py:tiny", "w", 5)
    assert args.trust == ["x", "y.z"]
    assert overrides == ["--config.b.c=1", "--config.b.c=2", "--config.d[0]=a b"]


def test_what_a_main_does_not_take_is_unknown_to_it():
    args, overrides = parsed("--count=1", needs=())
    assert vars(args) == {"count": 1} and overrides == []
    line = refused("--config=a.py", needs=())
    assert line.startswith("unknown flag --config; did you mean --count?")
    assert refused("--config.a=1", needs=()).startswith("unknown flag --config.a; ")
    args, _ = parsed("--workdir=w", needs=("workdir",), takes=("config",))
    assert args.config is None


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ("--cofnig=a.py --workdir=w", "unknown flag --cofnig; did you mean --config?"),
        ("--config=a.py --wrkdir=w", "unknown flag --wrkdir; did you mean --workdir?"),
        ("--conf=a.py --workdir=w", "unknown flag --conf; did you mean --config?"),
        ("-config=a.py", "unknown flag -config; did you mean --config?"),
        (
            "--config=a --workdir=w --cofnig.train.steps=3",
            "unknown flag --cofnig.train.steps; did you mean --config.train.steps?",
        ),
        ("--config=a --workdir=w --zzz", "unknown flag --zzz; --help lists the flags"),
        (
            "--config=a --workdir=w --config.x 3",
            "--config.x: write --config.x=VALUE, with the equals sign",
        ),
        (
            "--config=a --workdir=w more",
            "unexpected argument 'more'; flags are written --flag=VALUE",
        ),
        ("--config=a --workdir=", "--workdir=FOLDER is missing (--help lists the flags)"),
        ("--config=a.py", "--workdir=FOLDER is missing (--help lists the flags)"),
        ("--workdir=w", "--config=FILE[:VARIANT] is missing (--help lists the flags)"),
        (
            "--config=a --workdir",
            "argument --workdir: expected one argument (--help lists the flags)",
        ),
        (
            "--config=a --workdir=w --count=x",
            "argument --count: invalid int value: 'x' (--help lists the flags)",
        ),
    ],
)
def test_a_mistyped_flag_is_one_line(argv, line):
    assert refused(*argv.split()) == line


# Ending


pytestmark = pytest.mark.usefixtures("exit_raises")


def ended(main, capsys):
    with pytest.raises(SystemExit) as caught:
        commandline.run(main, [])
    return caught.value.code, capsys.readouterr().err


def raising(error):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code"),
    [(UserError, 2), (DivergedError, 65), (StorageError, 74), (Preempted, 75)],
)
def test_a_user_error_is_one_line_and_its_code(error, code, capsys):
    assert ended(raising(error("first\nsecond")), capsys) == (code, "error: first second\n")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_full_or_closed_disk_is_one_line(number, capsys):
    code, text = ended(raising(OSError(number, os.strerror(number), "/d/f")), capsys)
    assert code == 74 and text.count("\n") == 1
    assert text.startswith(f"error: /d/f: {os.strerror(number)}; ")


def test_an_interrupt_and_the_normal_end(capsys):
    assert ended(raising(KeyboardInterrupt()), capsys) == (130, "interrupted\n")
    assert ended(lambda argv: None, capsys) == (0, "")
    assert ended(lambda argv: 3, capsys) == (3, "")


@pytest.mark.parametrize("error", [ValueError("bug"), OSError(errno.ENOENT, "no", "f")])
def test_a_bug_keeps_its_traceback(error, capsys):
    code, text = ended(raising(error), capsys)
    assert code == 70 and text.startswith("Traceback") and type(error).__name__ in text


def test_a_failing_process_does_not_wait_for_its_threads(tmp_path):
    body = "import threading, time; threading.Thread(target=time.sleep, args=(50,)).start(); 1 / 0"
    before = time.monotonic()
    assert start(tmp_path, "--config=a", "--workdir=w", body=body).returncode == 70
    assert time.monotonic() - before < 30


def test_a_mistake_in_a_real_process(tmp_path):
    done = start(tmp_path, "--cofnig=a.py", "--workdir=w")
    line = "error: unknown flag --cofnig; did you mean --config?\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


def test_a_bug_in_a_real_process_shows_where(tmp_path):
    done = start(tmp_path, "--config=a", "--workdir=w", body="raise RuntimeError('ours')")
    assert done.returncode == 70 and "Traceback" in done.stderr and "a w [] 3 []" in done.stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_noticed(tmp_path):
    with open("/dev/full", "w") as full:
        done = start(
            tmp_path, "--config=a", "--workdir=w",
            capture_output=False, stdout=full, stderr=subprocess.PIPE,
        )  # fmt: skip
    assert done.returncode == 74
    assert done.stderr.startswith("error: No space left on device; make room")


def test_help_answers_in_under_a_second_and_names_the_module(tmp_path):
    seconds = []
    for _ in range(3):  # the best of three: this machine may be busy
        begin = time.perf_counter()
        done = start(tmp_path, "--help")
        seconds.append(time.perf_counter() - begin)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("usage: python -m tool")
    for text in ("--config FILE[:VARIANT]", "--workdir", "--trust", "--count", "--config.train"):
        assert text in done.stdout
    assert min(seconds) < 1.0


def test_configs_are_read_without_jax():
    code = (
        "import scorediff.configfile, sys; sys.exit('jax' in sys.modules or 'flax' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert (
        subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
    )
