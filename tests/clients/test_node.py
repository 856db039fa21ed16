"""Clients for JavaScript, in node/; they are skipped where there is no Node."""

import os
import pathlib
import shutil
import subprocess
import unittest

SERVER = None  # set by main.py

HERE = pathlib.Path(__file__).parent / "node"


@unittest.skipUnless(shutil.which("node") and shutil.which("npm"), "needs Node and npm")
class Node(unittest.TestCase):
    def test_the_sdks_for_javascript(self):
        work = SERVER.work / "node"
        work.mkdir(exist_ok=True)
        for name in ("package.json", "sdks.test.js"):
            shutil.copy(HERE / name, work)
        subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund"], cwd=work, check=True)
        ran = subprocess.run(["node", "--test"], cwd=work, env=os.environ | {"ARGES_ROOT": SERVER.root}, capture_output=True, text=True)
        self.assertEqual(ran.returncode, 0, ran.stdout + ran.stderr)
        self.assertIn("pass 5", ran.stdout)
