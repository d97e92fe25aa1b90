"""What runs in pods of the namespace while a cluster is checked: Python's standard library alone.

The file's text is handed over as `python -c TEXT WHAT …`; each line printed is JSON.
"""

import http.client
import itertools
import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path

IMAGE = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": [0] * 64}]}


def make(folder: str) -> dict:
    """Make a folder in a volume and write into it."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "written").write_text("gkd")
        (Path(folder) / "written").unlink()
    except OSError as error:
        return {"error": f"{error.filename or folder}: {error.strerror}", "user": os.getuid()}
    return {"error": None, "user": os.getuid()}


def remove(folder: str) -> dict:
    """Remove that folder."""
    shutil.rmtree(folder, ignore_errors=True)
    return {"error": f"{folder} is still there" if Path(folder).exists() else None}


def ask(connection: http.client.HTTPConnection, model: str) -> str | None:
    """One request; None, or what was wrong with the answer."""
    try:
        head = {"Content-Type": "application/json"}
        connection.request("POST", f"/v2/models/{model}/infer", json.dumps(IMAGE), head)
        reply = connection.getresponse()
        content = reply.read()
        if reply.status != 200:
            return f"{reply.status} {content[:200].decode(errors='replace')}"
        (output,) = json.loads(content)["outputs"]
        return None if output["shape"] == [1, 10] else f"an answer of shape {output['shape']}"
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        connection.close()
        return f"{type(error).__name__}: {error}"


def ask_on(address: str, model: str) -> None:
    """Ask all the while, in two threads that keep their connection and two that do not; a line of counts a second."""
    counts = {"answered": 0, "refused": 0, "first": None}
    lock = threading.Lock()

    def work(keeps: bool) -> None:
        connection = http.client.HTTPConnection(address, timeout=60)
        while True:
            wrong = ask(connection, model)
            if not keeps:
                connection.close()
            with lock:
                counts["refused" if wrong else "answered"] += 1
                counts["first"] = counts["first"] or wrong
            time.sleep(0.02)

    for keeps in (True, True, False, False):
        threading.Thread(target=work, args=(keeps,), daemon=True).start()
    for number in itertools.count():
        with lock:
            print(json.dumps(counts | {"line": number}), flush=True)
        time.sleep(1)


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    if what == "ask-on":
        ask_on(*words)
    elif what == "ask":
        address, model = words
        print(json.dumps({"error": ask(http.client.HTTPConnection(address, timeout=60), model)}), flush=True)
    else:
        print(json.dumps({"make": make, "remove": remove}[what](*words)), flush=True)
