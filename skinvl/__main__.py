"""`python -m skinvl`, which torchrun needs."""

from __future__ import annotations

import atexit
import logging
import os
import sys

from skinvl.cli import main

code = main()
if "LOCAL_RANK" in os.environ:
    # The threads of a process group, left to the interpreter's own end, now and then abort a rank that has done all it
    # had to do, and the whole job fails by it.
    atexit._run_exitfuncs()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
raise SystemExit(code)
