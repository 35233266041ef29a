"""Streams that are closed, full or of another encoding, and users without a home."""

import errno
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from trpo_jax.cli import console, startup
from trpo_jax.execution.compilation_cache import default_cache_dir


class Full(io.StringIO):
    """A stream onto a full disk."""

    def write(self, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


HELP = f"{sys.executable} -m trpo_jax_launcher --help"


def shell(command, **variables):
    return subprocess.run(command, shell=True, env=os.environ | variables, capture_output=True, text=True, check=False)


def test_what_an_encoding_has_not_is_replaced():
    ended = shell(HELP, PYTHONIOENCODING="ascii")
    assert ended.returncode == 0, ended.stderr
    assert "environments ? settings ? seeds" in ended.stdout


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-"])
def test_a_closed_stream_is_no_reason_to_fail(closed):
    ended = shell(f"{HELP} {closed}")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_full_disk_under_stdout_is_one_line():
    ended = shell(f"{HELP} > /dev/full")
    assert ended.returncode == 2
    assert ended.stderr == "trpo-jax: error: No space left on device\n"


def test_a_training_goes_on_without_its_lines(monkeypatch, capfd):
    monkeypatch.setattr(sys, "stdout", Full())
    console.say("one")
    console.say("two")
    assert sys.stdout.name == os.devnull
    sys.stdout.close()
    assert capfd.readouterr().err == "trpo-jax: warning: stdout: No space left on device; continuing without it\n"


def test_a_training_goes_on_with_nowhere_to_complain(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Full())
    monkeypatch.setattr(sys, "stderr", Full())
    console.say("one")
    startup.complain("warning: two")
    assert (sys.stdout.name, sys.stderr.name) == (os.devnull, os.devnull)
    sys.stdout.close()
    sys.stderr.close()


def test_a_full_disk_under_both_streams_ends_in_the_same_code():
    assert shell(f"{HELP} > /dev/full 2>&1").returncode == 2
    assert shell(f"{HELP.removesuffix('--help')} nonsense > /dev/full 2>&1").returncode == 2


def test_without_a_home_no_compiled_programs_are_kept(monkeypatch):
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache_dir() is None
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache_dir() == Path("/somewhere/trpo-jax/xla")


CACHED = """
import sys
import time
import jax
import trpo_jax
print(trpo_jax.enable_compilation_cache(*sys.argv[1:]))
print(jax.config.jax_compilation_cache_dir)
"""


@pytest.mark.parametrize(
    ("arguments", "variables", "kept"),
    [
        ((), {"XDG_CACHE_HOME": "/cache"}, "/cache/trpo-jax/xla"),
        (("mine",), {"XDG_CACHE_HOME": "/cache"}, "mine"),
        (("mine",), {"JAX_COMPILATION_CACHE_DIR": "/theirs"}, "/theirs"),
    ],
)
def test_compiled_programs_are_kept_for_python_users_too(arguments, variables, kept):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")} | variables
    command = [sys.executable, "-c", CACHED, *arguments]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.stderr == ""
    assert ended.stdout.split() == [kept, kept]


def test_a_process_that_ends_at_once_keeps_no_program_that_may_be_half_written(tmp_path, monkeypatch):
    for name, age in (("old-cache", 60), ("new-cache", 0), ("other", 0)):
        (tmp_path / name).write_bytes(b"program")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    kept = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    monkeypatch.setattr(os, "_exit", sys.exit)
    try:
        with pytest.raises(SystemExit) as stop:
            startup.end_at_once(130)
    finally:
        jax.config.update("jax_compilation_cache_dir", kept)
    assert stop.value.code == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old-cache", "other"]


TALKING = """
import threading, time
from trpo_jax.cli.startup import ended_by_ctrl_c
from trpo_jax.execution import compilation_cache

# As a large folder of programs takes it.
compilation_cache.drop_newest_programs = lambda: time.sleep(0.5)

def talk():
    while True:
        print("compiled", flush=True)

with ended_by_ctrl_c(lambda: "last words", lambda: False):
    threading.Thread(target=talk, daemon=True).start()
    time.sleep(60)
"""


def test_no_thread_prints_after_the_last_words():
    process = subprocess.Popen([sys.executable, "-c", TALKING], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "compiled\n"
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.splitlines()[-1].endswith("last words")
