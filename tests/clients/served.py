"""The program as a server for one test."""

import re
import signal
import subprocess
import sys


class Served:
    """`tinyserve serve` on a free port, until the end of a `with`."""

    def __init__(self, *args, model=None):
        self.command = [sys.argv[1], "serve", "--model", str(model or sys.argv[2]), "--port", "0",
                        "--log-level", "warning", *args]

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        for line in self.process.stdout:
            found = re.search(r"dashboard +(http://\S+)/", line)
            if found:
                self.address = found.group(1)
                return self
        raise RuntimeError(f"{' '.join(self.command)} did not start")

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(60)
        self.process.stdout.close()
        assert status == 0, f"the server exited with {status}"
