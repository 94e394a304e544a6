"""A command in a fork is what it is in a process of its own, or it is refused."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tests import command_tools, fork_server

#: one server for this file: it imports next to nothing, and one package that reads variables
LOADED = ("json", "huggingface_hub.constants")


def forked(*command, **options):
    return command_tools.run(*command, loaded=LOADED, **{"timeout": 20, **options})


def alone(*command, **options):
    return subprocess.run(
        [sys.executable, *command], cwd=options.pop("cwd", command_tools.ROOT),
        capture_output=True, text=True, encoding="utf-8", **options,
    )  # fmt: skip


ENDINGS = {
    "end of the script": ("pass", 0),
    "exit with a number": ("raise SystemExit(3)", 3),
    "exit with a line": ("raise SystemExit('no such option')", 1),
    "error": ("1 / 0", 1),
    "death": ("import os; os._exit(7)", 7),
    "signal": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_status_and_streams_are_those_of_a_process(ending):
    code, status = ENDINGS[ending]
    command = ("-c", f"import sys; print('à', flush=True); print('b', file=sys.stderr)\n{code}")
    fork, process = forked(*command), alone(*command)
    assert fork.returncode == process.returncode == status
    assert fork.stdout == process.stdout == "à\n"
    # The traceback of a fork has the server's frames above the command's; its last line is the same
    assert fork.stderr.splitlines()[0] == "b"
    assert fork.stderr.splitlines()[-1] == process.stderr.splitlines()[-1]


def test_scripts_modules_and_code_get_their_arguments_and_are_main(tmp_path):
    text = "import sys; print(__name__, sys.argv[1:], sys.path[0], sys.stdin.read() == '')"
    (tmp_path / "told.py").write_text(text, encoding="utf-8")
    for command in (("told.py", "a", "b=c"), ("-m", "told", "a", "b=c"), ("-c", text, "a", "b=c")):
        fork = forked(*command, cwd=tmp_path)
        process = alone(*command, cwd=tmp_path, stdin=subprocess.DEVNULL)
        assert fork.stdout == process.stdout != "", (command, fork.stderr)


def test_what_children_of_a_command_write_is_heard():
    fork = forked("-c", "import subprocess; subprocess.run(['sh', '-c', 'echo out; echo err >&2'])")
    assert (fork.stdout, fork.stderr) == ("out\n", "err\n")


def test_a_command_leaves_nothing_to_the_next(tmp_path):
    changes = (
        "import builtins, os, sys; os.chdir('/'); os.environ['LEFT'] = '1'; os.environ.pop('GIVEN')"
        "; sys.path.insert(0, '/left'); sys.modules['left'] = sys; builtins.left = 1"
    )
    assert forked("-c", changes, env={**os.environ, "GIVEN": "1"}).returncode == 0
    seen = (
        "import builtins, os, sys; print(os.getcwd(), 'LEFT' in os.environ, 'GIVEN' in os.environ,"
        " '/left' in sys.path, 'left' in sys.modules, hasattr(builtins, 'left'))"
    )
    done = forked("-c", seen, cwd=tmp_path)
    assert done.stdout == f"{tmp_path} False False False False False\n", done.stderr


def test_a_command_that_takes_too_long_is_killed_with_its_children_and_the_next_one_runs(tmp_path):
    code = (
        "import subprocess, time; child = subprocess.Popen(['sleep', '60']);"
        "open('pid', 'w').write(str(child.pid)); print('began', flush=True); time.sleep(60)"
    )
    begin = time.monotonic()
    done = forked("-c", code, cwd=tmp_path, timeout=1)
    assert (done.returncode, done.stdout) == (-9, "began\n")
    assert time.monotonic() - begin < 30
    assert not _runs(int((tmp_path / "pid").read_text(encoding="utf-8")))
    assert forked("-c", "print('next')").stdout == "next\n"


def _runs(process: int) -> bool:
    """A killed orphan stays as a zombie until its new parent asks for it."""
    for _ in range(100):
        try:
            with open(f"/proc/{process}/stat", encoding="utf-8") as stat:
                if stat.read().rpartition(")")[2].split()[0] == "Z":
                    return False
        except (FileNotFoundError, ProcessLookupError):
            return False
        time.sleep(0.02)
    return True


REMOVED = ("PYTHONHASHSEED", "OTHER")
UNSEEN = ["PYTHONIOENCODING", "PYTHONHASHSEED", "PYTHONUTF8", "LC_ALL", "LANG", "HF_HUB_OFFLINE"]


@pytest.mark.parametrize("name", UNSEEN)
def test_environment_that_was_read_before_the_fork_is_refused_by_name(name, tmp_path):
    code = "open('ran', 'w').close()"
    with pytest.raises(AssertionError, match=f"needs a process of its own: {name}"):
        forked("-c", code, cwd=tmp_path, env={**os.environ, name: "unlike"})
    assert not (tmp_path / "ran").exists()


def test_a_command_has_the_environment_it_is_given_and_no_more():
    code = "import os; print(os.environ.get('GIVEN'), 'PYTEST_CURRENT_TEST' in os.environ)"
    given = {**os.environ, "GIVEN": "1"}
    del given["PYTEST_CURRENT_TEST"]  # the server has it: it was begun by a test
    assert forked("-c", code, env=given).stdout == "1 False\n"


def test_environment_taken_away_that_was_read_before_the_fork_is_refused(monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    monkeypatch.setenv("OTHER", "0")
    left = {name: value for name, value in os.environ.items() if name not in REMOVED}
    assert fork_server._unseen(left) == ["PYTHONHASHSEED"]


def test_modules_on_the_path_that_a_command_is_given_are_found(tmp_path):
    (tmp_path / "only_here.py").write_text("print('found')", encoding="utf-8")
    done = forked("-c", "import only_here", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.stdout == "found\n", done.stderr
    assert forked("-c", "import only_here").returncode == 1


def test_what_only_children_of_a_command_read_is_handed_on():
    code = "import os, subprocess; print(os.environ['LD_LIBRARY_PATH'], flush=True); " \
           "subprocess.run('echo $LD_LIBRARY_PATH', shell=True)"  # fmt: skip
    done = forked("-c", code, env={**os.environ, "LD_LIBRARY_PATH": "/no/such/folder"})
    assert done.stdout.split() == ["/no/such/folder"] * 2
