"""All settings in one tree; the only place that reads the environment and livevalue.toml.

`LIVEVALUE_` + section + `__` + name, for example LIVEVALUE_KAFKA__BOOTSTRAP. The tree stands
here and not in `livevalue` because `faust -A streams.app worker` needs it too (ADR 2).
"""

from __future__ import annotations

from datetime import timedelta
from functools import cached_property
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from featurestore.settings import FeatureSettings, StoreSettings, ValueSettings
from scoring.retraining.settings import RetrainSettings
from scoring.settings import ModelSettings, TrainingSettings
from streams.settings_sources import Environment, File


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KafkaSettings(_Section):
    """The log: where it is and what its topics are called."""

    bootstrap: str = Field("", description="host:port[,host:port]; empty = embedded stack or error")
    app: str = Field("livevalue", description="consumer group, prefix of transactional ids")
    browse: str = Field("events.browse", description="input topic of what people look at")
    purchase: str = Field("events.purchase", description="input topic of orders and refunds")
    interaction: str = Field("events.interaction", description="input topic of everything else")
    mixed: str = Field("", description="one topic with all types, instead of the three")
    scores: str = Field("scores", description="output topic, compacted, keyed by user")
    dlq: str = Field("events.dlq", description="topic of dead letters, with reason and raw bytes")
    partitions: int = Field(8, ge=1, le=4096, description="of each input topic and of scores")
    replication: int = Field(1, ge=1, description="of topics that `livevalue topics` makes")
    partitioner: Literal["murmur2", "crc32", "fnv1a"] = Field(
        "murmur2", description="how producers choose the partition: Java, librdkafka, Go clients"
    )
    compacted: Literal["refuse", "accept"] = Field(
        "refuse", description="input topics that Kafka compacts; see operations before `accept`"
    )
    security: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="protocol to the brokers"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "PLAIN", description="with SASL only"
    )
    username: str = Field("", description="with SASL only")
    password: SecretStr = Field(SecretStr(""), description="with SASL only")
    password_file: str = Field(
        "", description="file whose first line is the password, where `password` is not set"
    )
    ca_file: str = Field("", description="PEM file of the brokers' authority; none: the system's")
    cert_file: str = Field("", description="PEM file of our certificate, where brokers want one")
    key_file: str = Field("", description="PEM file of its key; none: it is in `cert_file`")
    session_timeout_s: float = Field(10.0, gt=0, description="a silent worker is replaced after")
    heartbeat_s: float = Field(
        3.0, gt=0, validate_default=True, description="between heartbeats to the group"
    )
    instance_id: str = Field("", description="static membership; empty = dynamic")
    max_record_bytes: int = Field(1 << 20, description="larger records are dead letters")

    @field_validator("heartbeat_s")
    @classmethod
    def _heard_in_time(cls, value: float, info: ValidationInfo) -> float:
        """A worker that is heard more seldom than it may be silent loses its partitions."""
        silent = info.data.get("session_timeout_s")
        if silent is not None and value >= silent:
            raise ValueError(f"must be less than session_timeout_s, which is {silent:g}")
        return value

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Input topics; a source's index is its place here.

        >>> KafkaSettings(mixed="events").sources
        ('events',)
        """
        return (self.mixed,) if self.mixed else (self.browse, self.purchase, self.interaction)

    @property
    def published(self) -> str:
        """Compacted topic with the identity and positions of the last published commit."""
        return f"{self.scores}.published"


class WorkerSettings(_Section):
    """How a worker runs."""

    batch: int = Field(4096, ge=1, description="most events folded in one step")
    metrics_port: int = Field(0, ge=0, le=65535, description="/metrics, /livez, /readyz; 0 = free")
    metrics_host: str = Field("127.0.0.1", description="address of the metrics port")
    clock: Literal["wall", "log"] = Field("wall", description="`log` where history is played in")
    idle_after_s: float = Field(86400.0, gt=0, description="a source at its end this long is idle")
    idle_behind: timedelta = Field(
        timedelta(hours=24), description="an idle source's clock is at least this far behind"
    )
    stall_s: float = Field(60.0, gt=0, description="lag with an unmoved watermark: exit non-zero")
    outbox_users: int = Field(5000, ge=1, description="processing waits above this many")
    transactions_per_s: float = Field(200.0, gt=0, description="most, of one worker")
    pause_ahead: timedelta = Field(
        timedelta(hours=1), description="a source further ahead than this waits for the others"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="least severe line that is written"
    )


class ServeSettings(_Section):
    """HTTP and the console: `livevalue serve`."""

    host: str = Field("127.0.0.1", description="address; set a token before others can reach it")
    port: int = Field(8080, ge=0, le=65535, description="0 = free")
    token: SecretStr = Field(
        SecretStr(""), description="clients send it as `Authorization: Bearer`; none: all may read"
    )
    token_file: str = Field("", description="file that holds the token, where `token` is not set")


class Settings(BaseSettings):
    """Livevalue's settings: defaults < livevalue.toml < environment < arguments."""

    model_config = SettingsConfigDict(
        env_prefix="LIVEVALUE_",
        env_nested_delimiter="__",
        toml_file="livevalue.toml",
        extra="forbid",
        frozen=True,
    )

    kafka: KafkaSettings = KafkaSettings()
    store: StoreSettings = StoreSettings()
    value: ValueSettings = ValueSettings()
    features: FeatureSettings = FeatureSettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    retrain: RetrainSettings = RetrainSettings()
    worker: WorkerSettings = WorkerSettings()
    serve: ServeSettings = ServeSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments win over the environment, the environment over livevalue.toml."""
        return init_settings, Environment(settings_cls), File(settings_cls)
