"""What Redis's errors mean to us: back off (StoreUnavailable), or an operator (StoreError).

Every message names the setting and what to do; none holds a password, since only the host, the
port and Redis's own text go in, and Redis's text never repeats an argument of ours but a key.
"""

from __future__ import annotations

from featurestore.errors import (
    FeatureStoreError,
    StoreAuthError,
    StoreError,
    StoreUnavailable,
    StoreVersionError,
)

SECTION = "LIVEVALUE_STORE"
SETTING = f"{SECTION}__URL"

# First word of an error -> what to do. These pass by themselves or with an operator's help, and
# nothing is written meanwhile, so a worker waits instead of ending.
_WAIT = {
    "LOADING": "is reading its data from disk: wait until it is ready",
    "BUSY": "is busy with another script: look for one with SCRIPT KILL and FUNCTION KILL",
    "READONLY": f"is a read-only replica: wait, or point {SETTING} at the primary",
    "MASTERDOWN": f"is a replica without its primary: wait, or point {SETTING} at the primary",
    "MISCONF": "cannot write its data to disk and refuses writes: free its disk",
    "OOM": "has used up its memory (maxmemory) and refuses writes: raise maxmemory, or drop "
    "stores that serve nobody (`livevalue stores ls`)",
    "NOREPLICAS": "has fewer replicas than min-replicas-to-write: bring them back",
    "TRYAGAIN": "moves this partition's slot to another node: wait",
    "MOVED": "is a cluster node without this partition's slot: write redis+cluster:// into "
    f"{SETTING}",
    "ASK": "moves this partition's slot to another node: wait",
    "CLUSTERDOWN": "is part of a cluster that is down: bring its nodes back",
    "UNBLOCKED": "was changed from primary to replica meanwhile: wait",
}
_AUTH = {
    "NOAUTH": f"wants a password: set {SECTION}__PASSWORD_FILE, or put one into {SETTING} "
    "(redis://user:password@host:port)",
    "WRONGPASS": f"refuses the user name or password: correct {SETTING} or "
    f"{SECTION}__PASSWORD_FILE",
    "NOPERM": f"does not let the account in {SETTING} do this: give it the rules of its role in "
    "docs/acl/redis.acl",
    "DENIED": f"runs in protected mode: set a password there and in {SETTING}",
}
_OURS = {
    "LVINVALID": "a commit was malformed and nothing was written",
    "LVTYPE": "a key of the store holds something else, and nothing was written: another "
    f"program uses the keys of {SETTING}; name another database there, or delete the key",
    "WRONGTYPE": "a key of the store holds something else: another program uses the keys of "
    f"{SETTING}; name another database there, or delete the key",
}


def failure(text: str, where: str) -> FeatureStoreError:
    """The exception that stands for Redis's error reply `text`, given by the server at `where`.

    >>> failure("LOADING Redis is loading the dataset in memory", "cache:6379")
    StoreUnavailable('Redis at cache:6379 is reading its data from disk: wait until it is ready')
    """
    word, _, rest = text.partition(" ")
    if word in _WAIT:
        return StoreUnavailable(f"Redis at {where} {_WAIT[word]}")
    if word in _AUTH:
        detail = f" ({rest})" if word == "NOPERM" else ""
        return StoreAuthError(f"Redis at {where} {_AUTH[word]}{detail}")
    if word in _OURS:
        return StoreError(f"Redis at {where}: {_OURS[word]} ({rest})")
    low = text.lower()
    if "unknown command" in low and ("fcall" in low or "function" in low):
        return StoreVersionError(
            f"Redis at {where} is too old, it has no functions: use Redis 7 or newer, or Valkey, "
            f"in {SETTING}"
        )
    if "without any password configured" in low:
        return StoreAuthError(
            f"Redis at {where} has no password, but {SETTING} gives one: take it out, or set it "
            "in Redis"
        )
    if "invalid password" in low:
        return StoreAuthError(f"Redis at {where} {_AUTH['WRONGPASS']}")
    if "db index" in low or "invalid db" in low:
        return StoreError(
            f"Redis at {where} has no such database: correct the number at the end of {SETTING}"
        )
    if "max number of clients" in low:
        return StoreUnavailable(f"Redis at {where} has its maximum of clients: raise maxclients")
    # An error inside a function comes wrapped: the word stands further in.
    for inner in (*_WAIT, "WRONGTYPE", "NOPERM"):
        if f"{inner} " in text and word in ("ERR", "EXECABORT"):
            return failure(text[text.index(f"{inner} ") :], where)
    if "can't execute" in low and "memory" in low:
        return failure("OOM", where)
    if ("acl" in low and "permission" in low) or "can't run this command" in low:
        return StoreAuthError(f"Redis at {where} {_AUTH['NOPERM']} ({text})")
    # An unknown command is answered with its arguments, which may be anything.
    return StoreError(f"Redis at {where} answered: {text.split(', with args')[0]}")
