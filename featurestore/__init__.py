"""What we know about a user: events, state, features, store. No Kafka, no torch."""
