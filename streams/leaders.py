"""Where the log of an earlier leader ends, as its successor says: what was read beyond was cut.

After an unclean election, or where a broker comes back with less in its files than it had said, a
log may be written on at once. Its end then says nothing, and a consumer reads on where it stood as
if nothing had happened. Each leader has a number, the epoch, and the broker knows at which offset
each epoch ended (Kafka's request OffsetForLeaderEpoch, KIP-320, of which aiokafka has nothing).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kafka import KafkaAdminClient, TopicPartition  # type: ignore[import-untyped]
from kafka.protocol.consumer import OffsetForLeaderEpochRequest  # type: ignore[import-untyped]

from streams.broker import connection, reach, translated
from streams.settings import KafkaSettings


def epoch_ends(
    kafka: KafkaSettings, epochs: Mapping[tuple[str, int], int]
) -> dict[tuple[str, int], int]:
    """For (topic, partition): the offset at which that epoch's records end in the log as it is now.

    Of an epoch of which the log holds nothing, the end of the one before it. Left out where the
    broker does not know. Blocking.
    """
    if not epochs:
        return {}
    reach(kafka)
    with translated(kafka):
        admin = KafkaAdminClient(**connection(kafka))
        try:
            found: dict[tuple[str, int], int] = admin._manager.run(_ask, admin, dict(epochs))
            return found
        finally:
            admin.close()


async def _ask(admin: Any, epochs: dict[tuple[str, int], int]) -> dict[tuple[str, int], int]:
    leaders = await admin._async_get_leader_for_partitions([TopicPartition(*at) for at in epochs])
    asked = OffsetForLeaderEpochRequest.OffsetForLeaderTopic
    ends = {}
    for node, tps in leaders.items():
        request = OffsetForLeaderEpochRequest(
            replica_id=-1,
            topics=[
                asked(
                    topic=tp.topic,
                    partitions=[
                        asked.OffsetForLeaderPartition(
                            partition=tp.partition,
                            current_leader_epoch=-1,
                            leader_epoch=epochs[tp.topic, tp.partition],
                        )
                    ],
                )
                for tp in tps
            ],
        )
        answer = await admin._manager.send(request, node_id=node)
        for topic in answer.topics:
            for one in topic.partitions:
                if not one.error_code and one.end_offset >= 0:
                    ends[topic.topic, one.partition] = int(one.end_offset)
    return ends
