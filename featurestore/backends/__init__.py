"""Stores under one contract suite; the only place that speaks to Redis.

memory.py   a store in this process: tests, scratch replays
redis.py    a store in Redis 7 or newer, or Valkey; store.lua holds its atomic steps
checks.py   what a commit must be like, for both      packing.py   how things look in Redis
link.py     connections                               replies.py   Redis's errors as ours
"""
