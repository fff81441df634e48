"""What is measured, and how: throughput, latency, size, and what survives kill -9."""
