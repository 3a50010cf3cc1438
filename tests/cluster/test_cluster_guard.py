import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DRIVER = """
import subprocess, sys
from autocompress.cluster.reaper import guard_children
guard_children()
guard_children()
child = subprocess.Popen(
    ["setsid", sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(300)"]
)
print(child.pid, flush=True)
sys.stdin.readline()
child.kill()
child.wait()
"""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def start():
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return driver, int(driver.stdout.readline())


def guards():
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"reaper.py" in path.read_bytes() and b"autocompress-run-" in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_children_that_hide_die_with_a_killed_driver():
    driver, child = start()
    assert alive(child)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    ended = time.monotonic() + 10
    while alive(child) and time.monotonic() < ended:
        time.sleep(0.1)
    assert not alive(child)


def test_a_driver_that_ends_in_order_takes_its_guard_along():
    before = set(guards())
    driver, child = start()
    own = set(guards()) - before
    assert own
    driver.communicate("\n", timeout=20)
    assert driver.returncode == 0
    assert not alive(child)
    assert not own & set(guards())
