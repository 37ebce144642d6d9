"""Run a script and print [peak resident GB, largest RssAnon in GB] as the last line of stderr. Linux only.

The peak is VmHWM of /proc/self/status: unlike ru_maxrss, it does not start from the parent's.
"""

import runpy
import sys
import threading
import time


def gigabytes(field):
    """A field of /proc/self/status that is given in kB."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e9


def watch(largest):
    """Keep the largest RssAnon in `largest`, twenty times a second."""
    while True:
        largest[0] = max(largest[0], gigabytes("RssAnon"))
        time.sleep(0.05)


if __name__ == "__main__":
    status, largest = 0, [0.0]
    threading.Thread(target=watch, args=(largest,), daemon=True).start()
    sys.argv = sys.argv[1:]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        status = end.code
    print(f"[{gigabytes('VmHWM')}, {max(largest[0], gigabytes('RssAnon'))}]", file=sys.stderr)
    sys.exit(status)
