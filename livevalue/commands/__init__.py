"""One file a group of commands: `register(app)` adds them, `ORDER` places them in the help.

A command parses, calls one function of another module, and shows what came back. HOME spares
the commands in it the import of all other groups (scipy, onnxruntime, pyarrow): a command that is
not in it works as well, only after a longer start.
"""

HOME = {
    "up": "stack",
    "topics": "topics",
    "settings": "settings",
    "doctor": "settings",
    "send": "sending",
    "map": "map",
    "get": "reading",
    "top": "reading",
    "subscribe": "reading",
    "demo": "demo",
    "init": "init",
    "run": "run",
    "serve": "serve",
    "dlq": "letters",
    "erase": "letters",
    "recover": "recover",
    "explain": "explain",
    "export": "export",
    "audit": "audit",
    "replay": "log",
    "digest": "log",
    "verify": "log",
    "archive": "log",
    "backfill": "stores",
    "stores": "stores",
    "retrain": "generations",
    "tune": "tune",
    "generations": "generations",
    "promote": "generations",
    "shadow": "shadow",
    "rollback": "generations",
}
