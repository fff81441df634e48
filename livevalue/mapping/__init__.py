"""Vendors' streams in: one message of theirs to none, one or several of our events.

A mapping is data: a TOML file (livevalue/mappings, or one's own) that says which of a vendor's
names become what, and at which paths the fields lie. `spec` is the file's form, `paths` reads
messages, `amounts` money, `engine` interprets, `report` counts, `moving` reads and produces.

Nothing here decides twice: what a mapped event may hold is said by featurestore.events alone, and
every event passes it before it is produced.
"""
