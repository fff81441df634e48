"""One node of Apache Kafka on loopback: broker and controller in one process (KRaft).

From KAFKA_HOME if that is set, else from the pinned jars. The broker's own warnings and errors
go to kafka.log in its folder, and the last of them into the error if it does not start.
"""

from __future__ import annotations

import base64
import os
import socket
import struct
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from livevalue.embedded import cds, java
from livevalue.embedded.errors import StackError
from livevalue.embedded.jars import Progress, kafka_jars
from livevalue.embedded.ports import LOOPBACK
from livevalue.embedded.process import Server, run_kept

# A new node, or one that was killed, waits in the controller for the session of its former
# self to end. Kafka's 9 s make that 12-15 s after a kill -9, 3 s make it about 5 s; 1 s was
# seen to fence a broker that an overloaded machine had merely starved.
SESSION_MS = 3000
# Above livevalue's own limit of 1 MiB, so that what is too large reaches the dead letters.
MESSAGE_BYTES = 16 << 20

_LOG4J = """<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="ERROR">
  <Appenders>
    <Console name="out" target="SYSTEM_OUT">
      <PatternLayout pattern="%d{ISO8601} %-5p %c{1}: %m%n%xEx{12}"/>
    </Console>
  </Appenders>
  <Loggers>
    <!-- Says once a start that one controller voter listens on loopback only; that is meant. -->
    <Logger name="org.apache.kafka.common.utils.AppInfoParser" level="ERROR"/>
    <Root level="WARN"><AppenderRef ref="out"/></Root>
  </Loggers>
</Configuration>
"""


@dataclass(frozen=True, slots=True)
class Runtime:
    """What runs Kafka: a Java, a class path, and the flags of its shared archive."""

    java: java.Java
    jars: Sequence[Path]
    shared: Sequence[str]

    def command(self, folder: Path) -> list[str]:
        """`java` with everything but heap and main class."""
        return [
            str(self.java.path),
            "-XX:+UseSerialGC",
            f"-Dlog4j2.configurationFile={folder / 'log4j2.xml'}",
            f"-Dkafka.logs.dir={folder}",
            "-Djava.awt.headless=true",
            *self.shared,
            "-cp",
            os.pathsep.join(str(jar) for jar in self.jars),
        ]


class Kafka(Server):
    """One broker.

    `fast` gives it the optimising compiler and a larger heap, for measuring; without, it
    starts sooner and takes less memory.
    """

    name = "kafka"

    def __init__(
        self,
        folder: Path,
        port: int,
        controller_port: int,
        *,
        fast: bool = False,
        progress: Progress | None = None,
        runtime: Runtime | None = None,
        held: Sequence[int] = (),
    ) -> None:
        super().__init__(folder, ready_s=60.0, stop_s=20.0, held=held)
        self.port = port
        self.controller_port = controller_port
        self.fast = fast
        self._progress = progress
        self._runtime = runtime

    @property
    def bootstrap(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    @property
    def data(self) -> Path:
        """Folder of the log's segments."""
        return self.folder / "data"

    def prepare(self) -> None:
        if self._runtime is None:
            found, jars = java.find(), class_path(self._progress)
            self._runtime = Runtime(found, jars, cds.flags(found, jars, self._progress))
        self.configure()
        if not (self.data / "meta.properties").is_file():
            self._format()

    def configure(self) -> None:
        """Write server.properties and log4j2.xml; a variant with logins or TLS adds to them."""
        write_configuration(self.folder, self.port, self.controller_port)

    def format_options(self) -> Sequence[str]:
        """More options of `format`: a variant with SCRAM names its first users here."""
        return ()

    def command(self) -> list[str]:
        return [*self._run_java(), "kafka.Kafka", str(self.folder / "server.properties")]

    def environment(self) -> Mapping[str, str]:
        return environment()

    def _run_java(self) -> list[str]:
        assert self._runtime is not None
        heap = ["-Xms256m", "-Xmx512m"] if self.fast else ["-Xmx256m"]
        tier = [] if self.fast else ["-XX:TieredStopAtLevel=1"]
        return [*self._runtime.command(self.folder), *heap, *tier]

    def _format(self) -> None:
        """A new cluster id into an empty folder."""
        # Kafka's ids are 16 bytes, URL-safe base64 without padding.
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        code, output = run_kept(
            [
                *self._run_java(),
                "kafka.tools.StorageTool",
                # One argument: an id that begins with "-" would be taken for an option.
                *("format", f"--cluster-id={cluster}"),
                *("-c", str(self.folder / "server.properties")),
                *self.format_options(),
            ],
            cwd=self.folder,
            env=environment(),
            within_s=60.0,
        )
        if code:
            said = "\n".join(f"  {line}" for line in self.telling(output.splitlines())[-12:])
            raise StackError(f"Kafka cannot format {self.data}; it says:\n{said}")

    def is_ready(self) -> bool:
        return answers(self.port)

    def telling(self, lines: list[str]) -> list[str]:
        """Without stack frames, which hide the one line that says why."""
        return [line for line in lines if not line.lstrip().startswith(("at ", "... "))]


def class_path(progress: Progress | None = None) -> list[Path]:
    """KAFKA_HOME's jars, else the pinned ones."""
    home = os.environ.get("KAFKA_HOME")
    if not home:
        return kafka_jars(progress)
    jars = sorted((Path(home) / "libs").glob("*.jar"))
    if not any(jar.name.startswith("kafka_2.") for jar in jars):
        raise StackError(
            f"KAFKA_HOME is {home}, but there is no libs/kafka_2.*.jar in it: "
            "set it to an unpacked Kafka 4, or unset it to have one fetched"
        )
    return jars


def environment() -> dict[str, str]:
    """The caller's, less what would change how a Java starts."""
    hidden = ("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS", "CLASSPATH")
    return {name: value for name, value in os.environ.items() if name not in hidden}


def write_configuration(folder: Path, port: int, controller_port: int) -> None:
    """server.properties and log4j2.xml."""
    settings = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@{LOOPBACK}:{controller_port}",
        "listeners": f"PLAINTEXT://{LOOPBACK}:{port},CONTROLLER://{LOOPBACK}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{port}",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "log.dirs": folder / "data",
        "auto.create.topics.enable": "false",
        "broker.session.timeout.ms": SESSION_MS,
        "broker.heartbeat.interval.ms": SESSION_MS // 6,
        "message.max.bytes": MESSAGE_BYTES,
        "replica.fetch.max.bytes": MESSAGE_BYTES,
        # One node: internal topics cannot have more than one replica.
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 1,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": 1,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "share.coordinator.state.topic.num.partitions": 1,
        "group.initial.rebalance.delay.ms": 0,
        "group.min.session.timeout.ms": 1000,
        # A few threads and small buffers: this node serves one machine.
        "num.network.threads": 1,
        "num.io.threads": 2,
        "num.recovery.threads.per.data.dir": 1,
        "background.threads": 2,
        "log.cleaner.dedupe.buffer.size": 4 << 20,  # the default takes 128 MB
        "log.index.size.max.bytes": 1 << 20,
        "log.retention.check.interval.ms": 1000,  # so that tests of retention need not wait
    }
    text = "".join(f"{key}={_escaped(value)}\n" for key, value in settings.items())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "server.properties").write_text(text, "utf-8")
    (folder / "log4j2.xml").write_text(_LOG4J, "utf-8")


def _escaped(value: object) -> str:
    """For a Java properties file: Latin-1 with UTF-16 escapes, where a backslash escapes."""
    out = []
    for character in str(value).replace("\\", "\\\\"):
        if character.isascii():
            out.append(character)
        else:
            units = character.encode("utf-16-be")
            out += [f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2)]
    return "".join(out)


def answers(port: int) -> bool:
    """Does a broker say which requests it takes (ApiVersions, version 0)?

    It does so from the moment at which it is registered and serves clients.
    """
    client = b"livevalue"
    request = struct.pack(">hhih", 18, 0, 1, len(client)) + client
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1.0) as link:
            link.sendall(struct.pack(">i", len(request)) + request)
            head = link.recv(8)
    except OSError:
        return False
    return len(head) == 8 and struct.unpack(">ii", head)[1] == 1
