"""`vllm serve NAME --host … --port …`, as far as skinvl asks it: answers from the table in $STANDING_IN, JSON.

The table: `answers`, for each user's last words the `text`, the `tokens` read and their `ids`; `start`, seconds until
it listens; `die`, the exit code with which it ends in place of that; `key`, without which it answers nothing;
`greedy`, whether it draws nowhere. Where it draws it says "drawn".
"""

from __future__ import annotations

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TABLE = json.loads(Path(os.environ["STANDING_IN"]).read_text())
NAME = sys.argv[sys.argv.index("--served-model-name") + 1]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._send(200 if self.path == "/health" else 404, {})

    def do_POST(self) -> None:
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if TABLE.get("key") and self.headers["Authorization"] != f"Bearer {TABLE['key']}":
            return self._send(401, {"error": "Unauthorized"})
        if given["model"] != NAME:
            return self._send(404, {"error": f"The model {given['model']} does not exist."})
        content = given["messages"][-1]["content"]
        found = TABLE["answers"].get(next(part["text"] for part in content if part["type"] == "text"))
        if found is None:
            return self._send(500, {"error": "it broke"})
        if self.path == "/tokenize":
            return self._send(200, {"count": len(found["ids"]), "max_model_len": 99, "tokens": found["ids"]})
        text = "drawn" if given.get("temperature") and not TABLE.get("greedy") else found["text"]
        message = {"role": "assistant", "content": text}
        usage = {"prompt_tokens": found["tokens"], "completion_tokens": 1, "total_tokens": found["tokens"] + 1}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        told = {"id": "1", "object": "chat.completion", "created": 1, "model": NAME, "choices": [choice]}
        return self._send(200, {**told, "usage": usage})

    def _send(self, code: int, body: Any) -> None:
        made = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(made)))
        self.end_headers()
        self.wfile.write(made)


def main() -> None:
    print("loading", sys.argv[1:], flush=True)
    if "die" in TABLE:
        print("CUDA out of memory", file=sys.stderr)
        sys.exit(TABLE["die"])
    time.sleep(TABLE.get("start", 0))
    where = sys.argv[sys.argv.index("--host") + 1], int(sys.argv[sys.argv.index("--port") + 1])
    ThreadingHTTPServer(where, Handler).serve_forever()


if __name__ == "__main__":
    main()
