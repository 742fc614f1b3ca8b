"""Kafka: the bus of the cluster profile."""
