#!/usr/bin/env python3
"""Sums up ctest runs: test_summary.py RESULTS_DIR...

Each folder holds ctest.xml (ctest --output-junit) and one gtest XML file for each gtest program that ran. A program's
cases are counted one by one; any other test counts as one. Exits 1 when something failed or nothing ran.
"""

import pathlib
import sys
import xml.etree.ElementTree as ElementTree

CASE_STATES = ("passed", "failed", "skipped")


def cases_of_program(path):
    """Yields (case, state) of a gtest program's XML file."""
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        if case.find("failure") is not None:
            yield name, "failed"
        elif case.find("skipped") is not None or case.get("result") == "skipped":
            yield name, "skipped"
        elif case.get("status") == "run":  # a disabled case never ran and counts as nothing
            yield name, "passed"


def state_of_test(test):
    """The state of one <testcase> of ctest's file."""
    return {"run": "passed", "fail": "failed"}.get(test.get("status"), "skipped")


def cases_of_run(folder):
    """Yields (test, case or None, state) of a whole ctest run."""
    report = folder / "ctest.xml"
    if not report.exists():
        yield "ctest itself", None, "failed"
        return
    for test in ElementTree.parse(report).getroot().iter("testcase"):
        name, state = test.get("name"), state_of_test(test)
        program = folder / f"{name}.xml"
        try:
            cases = list(cases_of_program(program)) if program.exists() else []
        except ElementTree.ParseError:  # the program died while it wrote
            cases = []
        for case, case_state in cases:
            yield name, case, case_state
        # A program may pass every case and fail afterwards (a leak, a crash at exit).
        if not cases or (state == "failed" and all(s != "failed" for _, s in cases)):
            yield name, None, state


def main(folders):
    total = dict.fromkeys(CASE_STATES, 0)
    notable = []
    print("\n==> Summary")
    for folder in map(pathlib.Path, folders):
        counts = dict.fromkeys(CASE_STATES, 0)
        for test, case, state in cases_of_run(folder):
            counts[state] += 1
            if state != "passed":
                notable.append(f"{state:8}{folder.parent.name}: {test}{f' {case}' if case else ''}")
        for state in CASE_STATES:
            total[state] += counts[state]
        print(f"{folder.parent.name}: " + ", ".join(f"{counts[state]} {state}" for state in CASE_STATES))
    print("\n".join(sorted(notable)))
    print(f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")
    return 1 if total["failed"] or not total["passed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
