#!/usr/bin/env python3
"""Holds the compiled kernels to what their occupancy rests on: resources_test.py CUOBJDUMP FILE [--table].

FILE is a library or program with CUDA kernels. Each kernel must be there for every architecture, keep its values in
registers (no stack, no local memory: that is where spilled registers go) and fit the shared memory that any block gets
without asking. --table prints what each takes, for docs/kernels.
"""

import re
import subprocess
import sys

ARCHITECTURES = ["sm_80", "sm_86", "sm_89", "sm_90"]
STATIC_SHARED_MAX = 48 << 10


def resources_of(text):
    """{(architecture, kernel): {"REG": n, "STACK": n, ...}} from cuobjdump's listing."""
    found, architecture, kernel = {}, None, None
    for line in text.splitlines():
        if match := re.match(r"\s*arch = (sm_\d+)", line):
            architecture = match.group(1)
        elif match := re.match(r"\s*Function ([^:]+):", line):
            kernel = match.group(1)
        elif kernel and "REG:" in line:
            numbers = re.findall(r"([A-Z]+)(?:\[0\])?:(\d+)", line)
            found[architecture, kernel] = {key: int(value) for key, value in numbers}
            kernel = None
    return found


def complaints(resources):
    """What is wrong with each kernel, as lines; nothing listed at all is wrong too."""
    if not resources:
        yield "no kernel was found"
    for kernel in sorted({kernel for _, kernel in resources}):
        missing = [a for a in ARCHITECTURES if (a, kernel) not in resources]
        if missing:
            yield f"{kernel}: not compiled for {', '.join(missing)}"
    for (architecture, kernel), used in sorted(resources.items()):
        for key in ("STACK", "LOCAL"):
            if used.get(key, 0) != 0:
                yield f"{kernel} on {architecture}: {used[key]} bytes of {key.lower()} memory (spilled registers?)"
        if used.get("SHARED", 0) > STATIC_SHARED_MAX:
            yield f"{kernel} on {architecture}: {used['SHARED']} bytes of static shared memory"


def check_the_check():
    """The reader of the listing and the rules must be able to fail."""
    line = " Function {}:\n  REG:{} STACK:{} SHARED:{} LOCAL:0 CONSTANT[0]:400 TEXTURE:0 SURFACE:0 SAMPLER:0\n"
    def listing(*rows):
        return "".join(f"arch = {a}\n" + line.format(*row) for a in ARCHITECTURES for row in rows)
    assert not list(complaints(resources_of(listing(("good", 40, 0, 1024)))))
    partial = "arch = sm_80\n" + line.format("partial", 1, 0, 0)
    for bad in (listing(("spills", 255, 16, 0)), listing(("wide", 40, 0, 50000)), partial, ""):
        assert list(complaints(resources_of(bad))), bad


def names_of(kernels):
    """{mangled: readable}, without the types of parameters."""
    done = subprocess.run(["c++filt", "-p"], input="\n".join(kernels), capture_output=True, text=True, check=False)
    readable = done.stdout.splitlines() if done.returncode == 0 else kernels
    return {k: re.sub(r"tinyserve::cuda::|\(anonymous namespace\)::", "", r) for k, r in zip(kernels, readable)}


def main(cuobjdump, file, *options):
    check_the_check()
    done = subprocess.run([cuobjdump, "--dump-resource-usage", file], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(done.stderr)
        return 1
    resources = resources_of(done.stdout)
    if "--table" in options:
        names = names_of(sorted({kernel for _, kernel in resources}))
        for kernel, name in sorted(names.items(), key=lambda item: item[1]):
            used = [resources[a, kernel] for a in ARCHITECTURES if (a, kernel) in resources]
            print(f"| `{name}` | " + " | ".join(str(u["REG"]) for u in used) + f" | {max(u['SHARED'] for u in used)} |")
    wrong = list(complaints(resources))
    print("\n".join(wrong))
    print(f"{len(resources)} kernels by architecture, {len(wrong)} complaints")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
