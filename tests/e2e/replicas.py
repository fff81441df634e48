"""Small sets of Valkey nodes on loopback that replace one another: Sentinel and Cluster.

Nodes keep nothing on disk: what a failover must live without is what the replica has not got.
Every node ends with the `with` block.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from livevalue.embedded.ports import LOOPBACK, free
from tests.contract.deployments import valkey

MASTER = "shop"
# Long enough for a starved machine, short enough for a test; Sentinel's default is 30 s.
_DOWN_MS = 1500


@dataclass(frozen=True)
class Wire:
    """How the nodes of a set and their clients speak with each other; plainly by default."""

    binary: Path = field(default_factory=valkey)
    host: str = LOOPBACK
    node: tuple[str, ...] = ()  # options of a server
    sentinel: tuple[str, ...] = ()  # lines of a Sentinel's configuration
    watch: tuple[str, ...] = ()  # more of them, about the master: `{MASTER}` is its name
    client: Mapping[str, Any] = field(default_factory=dict)  # of one that may do everything
    login: str = ""  # of a URL: user:password@
    tls: bool = False

    def at(self, port: int) -> list[str]:
        """Options of who listens there."""
        return ["--port", "0", "--tls-port", str(port)] if self.tls else ["--port", str(port)]

    def url(self, way: str, ports: Iterable[int]) -> str:
        """As LIVEVALUE_STORE__URL takes it."""
        scheme = "rediss" if self.tls else "redis"
        return f"{scheme}+{way}://{self.login}{','.join(f'{self.host}:{p}' for p in ports)}"


@dataclass(frozen=True, slots=True)
class One:
    """One process."""

    port: int
    process: subprocess.Popen[bytes]
    wire: Wire

    def client(self) -> redis.Redis:
        host = self.wire.host
        return redis.Redis(host=host, port=self.port, socket_timeout=2.0, **self.wire.client)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()


@dataclass
class Nodes:
    """The processes of a set, by port."""

    folder: Path
    wire: Wire = field(default_factory=Wire)
    running: dict[int, One] = field(default_factory=dict)
    _taken: set[int] = field(default_factory=set)

    def port(self) -> int:
        self._taken.add(found := free(self._taken))
        return found

    def start(self, port: int, *options: str, config: Path | None = None) -> One:
        place = self.folder / str(port)
        place.mkdir(exist_ok=True)
        words = [str(self.wire.binary), *([str(config)] if config else [])]
        if config is None:
            words += ["--bind", LOOPBACK, *self.wire.at(port), "--dir", str(place)]
            words += self.wire.node
            words += ["--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"]
            words += ["--maxmemory-policy", "noeviction"]
        with (place / "log").open("ab") as log:
            process = subprocess.Popen([*words, *options], stdout=log, stderr=log, cwd=place)
        one = self.running[port] = One(port, process, self.wire)
        wait_for(lambda: bool(one.client().ping()), 10.0)
        return one

    def stop(self) -> None:
        for one in self.running.values():
            one.kill()


def wait_for(true: Callable[[], bool], within_s: float) -> None:
    """Wait until it is so; what a server that is not there raises counts as not yet."""
    until = time.monotonic() + within_s
    while True:
        try:
            if true():
                return
        except (redis.RedisError, OSError):
            pass
        if time.monotonic() > until:
            raise TimeoutError(f"not so within {within_s} s")
        time.sleep(0.05)


@dataclass
class SentinelSet:
    """A master, a replica and three Sentinels, of which two must agree."""

    nodes: Nodes
    sentinels: list[int]

    @property
    def url(self) -> str:
        return f"{self.nodes.wire.url('sentinel', self.sentinels)}/{MASTER}"

    def master(self) -> int:
        """Port of the master, as a Sentinel says."""
        for port in self.sentinels:
            try:
                found: Any = (
                    self.nodes.running[port].client().sentinel_get_master_addr_by_name(MASTER)
                )
                return int(found[1])
            except (redis.RedisError, OSError):
                continue
        raise TimeoutError("no Sentinel answers")

    def client(self) -> redis.Redis:
        """Of the master."""
        return self.nodes.running[self.master()].client()

    def pair(self) -> tuple[One, One]:
        """Master and replica."""
        nodes, old = self.nodes.running, self.master()
        (new,) = nodes.keys() - {old, *self.sentinels}
        return nodes[old], nodes[new]

    def leads(self, one: One) -> bool:
        """Whether whoever asks is sent to it."""
        return self.master() == one.port


@contextmanager
def sentinel_set(folder: Path, wire: Wire | None = None) -> Iterator[SentinelSet]:
    wire = wire or Wire()
    nodes = Nodes(folder, wire)
    try:
        master, replica = nodes.port(), nodes.port()
        nodes.start(master)
        nodes.start(replica, "--replicaof", wire.host, str(master))
        wait_for(lambda: replicas_of(nodes.running[master]) == 1, 15.0)
        sentinels = []
        for _ in range(3):
            port = nodes.port()
            path = folder / f"sentinel-{port}.conf"
            listens = " ".join(wire.at(port)).replace(" --", "\n")[2:]
            lines = [f"bind {LOOPBACK}", listens, f"dir {folder}", *wire.sentinel]
            lines += [
                f"sentinel monitor {MASTER} {wire.host} {master} 2",
                f"sentinel down-after-milliseconds {MASTER} {_DOWN_MS}",
                f"sentinel failover-timeout {MASTER} 6000",
                *(line.format(MASTER=MASTER) for line in wire.watch),
            ]
            path.write_text("\n".join(lines) + "\n")
            nodes.start(port, "--sentinel", config=path)
            sentinels.append(port)
        found = SentinelSet(nodes, sentinels)

        def agreed() -> bool:
            state: Any = nodes.running[sentinels[0]].client().sentinel_master(MASTER)
            return int(state["num-other-sentinels"]) == 2 and int(state["num-slaves"]) == 1

        wait_for(agreed, 20.0)
        yield found
    finally:
        nodes.stop()


def replicas_of(one: One) -> int:
    """How many replicas a master feeds."""
    state: Any = one.client().info("replication")
    return sum(
        1
        for name, said in state.items()
        if name.startswith("slave") and isinstance(said, dict) and said["state"] == "online"
    )


def fed(one: One) -> bool:
    """Whether a master has its replica."""
    return replicas_of(one) == 1


def is_master(one: One) -> bool:
    """Whether a server takes writes, as far as it knows."""
    state: Any = one.client().info("replication")
    return bool(state["role"] == "master")


def replicas(nodes: dict[int, One], master: One) -> list[One]:
    """Those that a master feeds."""
    state: Any = master.client().info("replication")
    ports = [
        int(v["port"]) for n, v in state.items() if n.startswith("slave") and isinstance(v, dict)
    ]
    return [nodes[port] for port in ports]


@dataclass
class ClusterSet:
    """Three masters with a replica each."""

    nodes: Nodes

    @property
    def url(self) -> str:
        return self.nodes.wire.url("cluster", self.nodes.running)

    def client(self) -> redis.RedisCluster:
        up = [one for one in self.nodes.running.values() if one.process.poll() is None]
        wire = self.nodes.wire
        return redis.RedisCluster(host=wire.host, port=up[0].port, **wire.client)

    def owner(self, key: str) -> One:
        """The master that holds a key."""
        node = self.client().get_node_from_key(key)  # type: ignore[no-untyped-call]
        assert node is not None
        return self.nodes.running[int(node.port)]

    def pair(self, partition: int = 0) -> tuple[One, One]:
        """The master that holds a partition of ours, and its replica."""
        old = self.owner(f"lv:{{{partition}}}:seq")
        (new,) = replicas(self.nodes.running, old)
        return old, new

    def leads(self, one: One) -> bool:
        """Whether the cluster as a whole takes it for the owner of partition 0."""
        node = self.client().get_node_from_key("lv:{0}:seq")  # type: ignore[no-untyped-call]
        return node is not None and node.port == one.port


@contextmanager
def cluster_set(folder: Path, wire: Wire | None = None) -> Iterator[ClusterSet]:
    nodes = Nodes(folder, wire or Wire())
    try:
        ports = [nodes.port() for _ in range(6)]
        buses = [nodes.port() for _ in range(6)]
        for port, bus in zip(ports, buses, strict=True):
            # The bus would take the port + 10,000, which may be no port at all.
            options = ["--cluster-enabled", "yes", "--cluster-port", str(bus)]
            nodes.start(port, *options, "--cluster-node-timeout", str(_DOWN_MS))
        clients = [nodes.running[port].client() for port in ports]

        def say(client: redis.Redis, *words: Any) -> Any:
            return client.execute_command(*words)  # type: ignore[no-untyped-call]

        for at, client in enumerate(clients):
            say(client, "CLUSTER", "SET-CONFIG-EPOCH", at + 1)
        for client in clients:
            for port, bus in zip(ports, buses, strict=True):
                say(client, "CLUSTER", "MEET", LOOPBACK, port, bus)
        names = [say(client, "CLUSTER", "MYID").decode() for client in clients]
        wait_for(lambda: all(int(_info(c)["cluster_known_nodes"]) == 6 for c in clients), 20.0)
        bounds = [0, 5461, 10923, 16384]
        for at in range(3):
            say(clients[at], "CLUSTER", "ADDSLOTSRANGE", bounds[at], bounds[at + 1] - 1)
            wait_for(lambda at=at: _follow(say, clients[at + 3], names[at]), 10.0)  # type: ignore[misc]

        def whole() -> bool:
            fed = all(replicas_of(nodes.running[port]) == 1 for port in ports[:3])
            return fed and all(_info(c)["cluster_state"] == "ok" for c in clients)

        wait_for(whole, 30.0)
        yield ClusterSet(nodes)
    finally:
        nodes.stop()


def _info(client: redis.Redis) -> dict[str, str]:
    found: dict[str, str] = client.cluster("info")
    return found


def _follow(say: Callable[..., Any], client: redis.Redis, master: str) -> bool:
    return bool(say(client, "CLUSTER", "REPLICATE", master))
