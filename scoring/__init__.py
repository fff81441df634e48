"""What a user is worth: values, models, generations. No Kafka, no Redis."""
