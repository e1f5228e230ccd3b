#!/usr/bin/env python3
"""Checks the tree against the rules of rules.py: lint.py [--build FOLDER] [--root FOLDER].

With --build, a configured and built folder, it also checks objects, build rules and the lists of tests.
"""

import argparse
import pathlib
import shutil
import sys

sys.dont_write_bytecode = True
import rules  # noqa: E402  (after the line above, so that no __pycache__ lands in the tree)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default=pathlib.Path(__file__).resolve().parent.parent.parent)
    parser.add_argument("--build")
    arguments = parser.parse_args()
    tree = rules.Tree(arguments.root, arguments.build)
    findings = sorted({str(finding) for rule in rules.RULES for finding in rule(tree)})
    print("\n".join(findings))
    if not shutil.which("clang-format"):
        print("note: clang-format is not installed, so formatting was not checked")
    print(f"{len(rules.RULES)} rules, {len(tree.files)} files ({len(tree.cpp_files)} C++), {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
