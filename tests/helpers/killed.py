"""`python killed.py RECIPE COMMANDS`: trains in forks of one process that has imported everything once, by its verb.

COMMANDS is JSON, a list of `{"set": {recipe field: value}, …}` with one of: `"after": seconds` (SIGKILL from outside),
`"call": n` (SIGKILL of itself at the n-th write of a save), `"bytes": n` (no file may grow beyond), `"term": step`
(SIGTERM once that step is logged), or nothing. Prints a line of JSON for each: exit code, what it said, whether it
died within a save.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from skinvl.recipe import files, loading, recipe, towers
from skinvl.train import checkpoint, pretrain, sft

torch.set_num_threads(1)


def dies(call: int) -> None:
    """Has this process kill itself at that write of a checkpoint, whichever function makes it."""
    left = [call]

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                Path(f"{os.getppid()}.inside").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*given, **named)

        return run

    writes = (files, "sync"), (files, "replace_folder"), (checkpoint, "clear"), (os, "rename"), (torch, "save")
    for owner, name in writes:
        setattr(owner, name, counted(getattr(owner, name)))


def child(one: Any, train: Callable[[Any], None], command: dict[str, Any], said: int) -> None:
    """Ends the process with what the verb would return."""
    os.dup2(said, 1)
    os.dup2(said, 2)
    code = 2
    try:
        if "call" in command:
            dies(command["call"])
        if "bytes" in command:
            resource.setrlimit(resource.RLIMIT_FSIZE, (command["bytes"], resource.RLIM_INFINITY))
        train(one.model_copy(update=command["set"]))
        code = 0
    except (ValueError, OSError) as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(f"skinvl: {error}", flush=True)
    finally:
        sys.stdout.flush()
        os._exit(code)


def main() -> None:
    """Runs the commands, one after another."""
    of_towers = loading.kind_of(sys.argv[1]) == "pretrain"
    one = (towers if of_towers else recipe).load(sys.argv[1])
    train = pretrain.train if of_towers else sft.train
    for command in json.loads(sys.argv[2]):
        inside = Path(f"{os.getpid()}.inside")
        inside.unlink(missing_ok=True)
        said = os.open("said", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        process = os.fork()
        if process == 0:
            child(one, train, command, said)
        if "after" in command:
            time.sleep(command["after"])
            os.kill(process, signal.SIGKILL)
        if "term" in command:
            log = Path("runs") / command["set"]["run"] / "log.jsonl"
            while not (log.is_file() and f'"step": {command["term"]},' in log.read_text()):
                time.sleep(0.01)
            os.kill(process, signal.SIGTERM)
        _, status = os.waitpid(process, 0)
        os.lseek(said, 0, os.SEEK_SET)
        text = os.read(said, 1 << 20).decode()
        os.close(said)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status), "said": text, "inside": inside.exists()}))


if __name__ == "__main__":
    main()
