#!/bin/sh
# What each role may do, for the default names of topics and of LIVEVALUE_KAFKA__APP. Run it once,
# as a super user: BOOTSTRAP=kafka-1:9092 CONFIG=admin.properties sh kafka.sh
# Kafka's READ and WRITE include DESCRIBE. Whoever produces events needs WRITE on the sources only.
set -eu
allow() { kafka-acls.sh --bootstrap-server "$BOOTSTRAP" --command-config "$CONFIG" --add --allow-principal "$@"; }

# worker: folds the sources, publishes in transactions, reads back what it published.
allow User:worker --operation Read --operation DescribeConfigs --topic events.browse --topic events.purchase --topic events.interaction
allow User:worker --operation Read --operation Write --operation DescribeConfigs --topic scores --topic scores.published
allow User:worker --operation Write --operation DescribeConfigs --topic events.dlq
allow User:worker --operation Read --group livevalue
allow User:worker --operation Write --operation Describe --transactional-id livevalue- --resource-pattern-type prefixed

# reader: subscribes to values; the events and the dead letters hold more about people than values.
allow User:reader --operation Read --topic scores

# operator: makes topics, looks into them, replays dead letters and erases users. Deletes nothing.
allow User:operator --operation Create --operation Read --operation Write --operation DescribeConfigs --operation AlterConfigs --topic events.browse --topic events.purchase --topic events.interaction --topic scores --topic scores.published --topic events.dlq
allow User:operator --operation Read --group livevalue
allow User:operator --operation Write --operation Describe --transactional-id livevalue- --resource-pattern-type prefixed
