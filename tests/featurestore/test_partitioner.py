"""Partitioners: equal to the real clients', and vectorised equal to plain."""

from __future__ import annotations

import zlib

import pytest
from aiokafka.partitioner import DefaultPartitioner  # type: ignore[import-untyped]
from aiokafka.partitioner import murmur2 as aiokafka_murmur2
from hypothesis import given
from hypothesis import strategies as st
from kafka.partitioner.default import murmur2 as kafka_python_murmur2  # type: ignore[import-untyped]

from featurestore.errors import UnknownPartitionerError
from featurestore.partitioner import NAMES, fnv1a, murmur2, partition, partitions_of

KEYS = st.binary(max_size=80)


@given(KEYS)
def test_murmur2_equals_both_python_clients(key: bytes) -> None:
    assert murmur2(key) == kafka_python_murmur2(key) == aiokafka_murmur2(key) & 0xFFFFFFFF


@given(KEYS, st.integers(1, 100))
def test_a_key_lies_where_aiokafka_puts_it(key: bytes, n: int) -> None:
    places = list(range(n))
    assert partition(key, n) == DefaultPartitioner()(key, places, places)


# UtilsTest.testMurmur2 of Apache Kafka (clients/src/test/java/.../UtilsTest.java), int32.
@pytest.mark.parametrize(
    ("key", "signed"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_equals_the_java_clients_known_answers(key: bytes, signed: int) -> None:
    assert murmur2(key) == signed & 0xFFFFFFFF


# draft-eastlake-fnv, section 8.2 (test vectors of FNV-1a 32).
@pytest.mark.parametrize(
    ("key", "answer"),
    [(b"", 0x811C9DC5), (b"a", 0xE40C292C), (b"foobar", 0xBF9CF968), (b"foo", 0xA9F37ED7)],
)
def test_fnv1a_equals_its_published_vectors(key: bytes, answer: int) -> None:
    assert fnv1a(key) == answer


def test_fnv1a_folds_the_sign_as_sarama_does() -> None:
    # int32(0xBF9CF968) = -1080231576; Go's % truncates: -1080231576 % 7 = -4 -> 4.
    assert partition(b"foobar", 7, "fnv1a") == 1080231576 % 7


def test_crc32_is_the_unsigned_remainder() -> None:
    assert zlib.crc32(b"123456789") == 0xCBF43926  # the check value of CRC-32/ISO-HDLC
    assert partition(b"123456789", 8, "crc32") == 0xCBF43926 % 8


@given(st.lists(KEYS, min_size=32, max_size=60), st.sampled_from(NAMES), st.integers(1, 64))
def test_many_keys_at_once_equal_one_by_one(keys: list[bytes], name: str, n: int) -> None:
    assert partitions_of(keys, n, name).tolist() == [partition(key, n, name) for key in keys]


def test_an_unknown_partitioner_names_the_setting() -> None:
    with pytest.raises(UnknownPartitionerError, match=r"kafka\.partitioner"):
        partition("ada", 8, "md5")
