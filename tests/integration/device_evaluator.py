"""An evaluator that says who answered, with what, and for how long."""

import hashlib
import os
import time
from pathlib import Path


def build():
    def evaluate(request):
        begun = time.time()
        time.sleep(request.get("sleep", 0.0))
        files = {name: hashlib.sha256(Path(path).read_bytes()).hexdigest() for name, path in request["files"].items()}
        return {"pid": os.getpid(), "begun": begun, "ended": time.time(), "files": files, "node": request["node"]}

    return evaluate
