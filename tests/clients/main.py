"""Runs the tests of this directory against a server: main.py ARGES WORK [NAME...]"""

import pathlib
import sys
import unittest

import test_openai
from server import Server


def main() -> int:
    arges, work, names = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3:]
    work.mkdir(parents=True, exist_ok=True)
    loader = unittest.TestLoader()
    loader.testNamePatterns = [f"*{name}*" for name in names] or None
    suite = loader.loadTestsFromModule(test_openai)
    with Server(arges, work) as server:
        test_openai.SERVER = server
        result = unittest.TextTestRunner(verbosity=2).run(suite)
    failed = len(result.failures) + len(result.errors)
    passed = result.testsRun - failed - len(result.skipped)
    print(f"{passed} passed, {failed} failed")
    return 0 if failed == 0 and passed > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
