"""Runs the tests of this directory against servers: main.py ARGES WORK [NAME...]"""

import importlib
import pathlib
import sys
import unittest

from server import Server

# Modules of tests by the model they want: a random one writes whatever it is asked to for as long as it is asked to,
# the one in the program thinks, answers and calls tools.
RANDOM = ["test_openai"]
NANO = ["test_openai_answers", "test_responses", "test_anthropic", "test_frameworks", "test_lm_eval", "test_node", "test_hostile", "test_load"]


def main() -> int:
    arges, work, names = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3:]
    work.mkdir(parents=True, exist_ok=True)
    passed = failed = 0
    for modules in (RANDOM, NANO):
        suite = unittest.TestSuite()
        modules = [importlib.import_module(module) for module in modules]
        for module in modules:
            loader = unittest.TestLoader()
            in_name = any(name in module.__name__ for name in names)
            loader.testNamePatterns = [f"*{name}*" for name in names] if names and not in_name else None
            suite.addTests(loader.loadTestsFromModule(module))
        if suite.countTestCases() == 0:
            continue
        with Server(arges, work, random=modules[0].__name__ in RANDOM) as server:
            for module in modules:
                module.SERVER = server
            result = unittest.TextTestRunner(verbosity=2).run(suite)
        failed += len(result.failures) + len(result.errors)
        passed += result.testsRun - len(result.failures) - len(result.errors) - len(result.skipped)
    print(f"{passed} passed, {failed} failed")
    return 0 if failed == 0 and passed > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
